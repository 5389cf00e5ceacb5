"""How a page answers: its headers, its errors as pages, and where a form leads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.console.access import COOKIE, Visitor
from api.console.rendering import render
from api.console.sessions import LIFE_SECONDS, Flash, Session
from api.once import Once
from api.problems import retry_after
from rehost.catalog.catalog import Catalog
from rehost.errors import InvalidParameter, RehostError, RouteNotFound, Unauthenticated, UnexpectedFault

_MAX_KEY = 64
log = logging.getLogger(__name__)

_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that a browser sends `Origin: null` with our own forms too.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class ConsoleRoute(APIRoute):
    """A route whose errors are pages."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                response = await answer(request)
            except Unauthenticated:
                response = _to_entrance(request)
            except RehostError as error:
                response = error_page(request, error)
            except RequestValidationError:
                response = error_page(request, InvalidParameter("The address is not valid."))
            except HTTPException:
                raise
            except Exception as error:
                log.error("%s %s failed", request.method, request.url.path, exc_info=error)
                response = error_page(request, UnexpectedFault())
            return guarded(request, response)

        return handle


def install(app: FastAPI) -> None:
    """Where a browser asks for a page that is not there, answer a page; programs get their problem as before."""
    told = app.exception_handlers[HTTPException]

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1/")
        if error.status_code == 404 and wants_page:
            return guarded(request, error_page(request, RouteNotFound(method=request.method, path=request.url.path)))
        answer: Response = await told(request, error)  # type: ignore[misc]
        return answer

    app.add_exception_handler(HTTPException, on_http)


def guarded(request: Request, response: Response) -> Response:
    """The response with the headers that each has, and the cookie of a session that is new."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    session: Session | None = getattr(request.state, "console_session", None)
    if session is not None and request.cookies.get(COOKIE) != session.id:
        set_cookie(request, response, session)
    return response


def set_cookie(request: Request, response: Response, session: Session) -> None:
    """Give the browser its session."""
    response.set_cookie(
        COOKIE,
        session.id,
        max_age=LIFE_SECONDS,
        path="/",
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )


def page(
    request: Request, visitor: Visitor | None, template: str, *, status_code: int = 200, **values: Any
) -> Response:
    """A page; `visitor` is None where nobody has logged in."""
    session = visitor.session if visitor else None
    prefect = request.app.state.settings.prefect_ui_url
    frame = {
        "visitor": visitor,
        "token": session.token if session else "",
        "flashes": session.take_flashes() if session else [],
        "here": request.url.path,
        "prefect_ui": prefect if urlsplit(prefect).scheme in ("http", "https") else None,
        "version": request.app.version,
        "refresh": None,
    }
    return HTMLResponse(render(template, {**frame, **values}), status_code)


def error_page(request: Request, error: RehostError) -> Response:
    """The page that tells an error: its code, what happened, what to do."""
    values = {"error": error, "faults": [fault[:2] for fault in error.facts.get("errors", [])]}
    response = page(request, None, "error.html", status_code=error.http_status, **values)
    response.headers.update(retry_after(error))
    return response


def gone_to(address: str, visitor: Visitor | None = None, *told: Flash) -> Response:
    """After a form: the page at that address, with what is to be told there."""
    if visitor is not None:
        for flash in told:
            visitor.session.flash(flash)
    return RedirectResponse(address, 303)


def failed(error: RehostError, about: str = "") -> Flash:
    """An error as a sentence on the next page."""
    return Flash("bad", f"{about}{error.code}: {error.message}", error.remedy)


def once_of(catalog: Catalog, request: Request, key: str) -> Once:
    """Answers a form that makes something. The key is in the form, so that one that is sent twice makes one thing."""
    return Once(catalog, request, key if key.isascii() and key.isalnum() and len(key) <= _MAX_KEY else None)


def local_path(address: str) -> str:
    """An address of this site to go to; `/` for any other one."""
    plain = address.startswith("/") and not address.startswith("//") and "\\" not in address and address.isprintable()
    return address if plain else "/"


def _to_entrance(request: Request) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = "/login" if request.method != "GET" or wanted == "/" else f"/login?next={quote(wanted)}"
    return RedirectResponse(target, 303)

"""In and out: the page that asks for a key."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import FormData
from starlette.responses import Response

from api.console.access import (
    COOKIE,
    TheForm,
    TheVisitor,
    check_origin,
    key_scope,
    sessions_of,
)
from api.console.pages import ConsoleRoute, gone_to, local_path, page
from api.security import client_of
from rehost.catalog.api_keys import hash_of_key
from rehost.errors import Unauthenticated

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)


async def _login_form(request: Request) -> FormData:
    check_origin(request)
    return await request.form()


@router.get("/login")
def show_login(request: Request, next: str = "/") -> Response:
    """Ask for a key; where none is needed, go on."""
    try:
        key_scope(request, None)
    except Unauthenticated:
        return page(request, None, "login.html", next=local_path(next), wrong=False)
    return gone_to(local_path(next))


@router.post("/login")
def log_in(request: Request, form: FormData = Depends(_login_form)) -> Response:  # noqa: B008
    """Begin a session with a key that opens something."""
    wanted, key = form.get("next"), form.get("key")
    target = local_path(wanted if isinstance(wanted, str) else "/")
    key_hash = hash_of_key(key.strip() if isinstance(key, str) else "")
    failures, client = request.app.state.failures, client_of(request)
    failures.check(client)
    try:
        key_scope(request, key_hash)
    except Unauthenticated:
        failures.add(client)
        return page(request, None, "login.html", status_code=401, next=target, wrong=True)
    # A new session at each log-in: what a browser had before is worth nothing.
    request.state.console_session = sessions_of(request).begin(key_hash)
    return gone_to(target)


@router.post("/logout")
def log_out(request: Request, visitor: TheVisitor, _form: TheForm) -> Response:
    """End the session."""
    sessions_of(request).end(visitor.session)
    request.state.console_session = None
    response = gone_to("/login")
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response

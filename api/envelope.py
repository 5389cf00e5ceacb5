"""What every request goes through first and every answer last: id, log line, measure, HEAD, and the plain refusals.

Nothing that a route raises gets past here: what nobody foresaw is logged with its traceback and answered as a problem
that tells nothing inner.
"""

from __future__ import annotations

import json
import logging
import time

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.measures import Measures
from api.problems import methods_of, problem
from api.request_ids import HEADER, begin_request
from rehost.errors import Forbidden, RehostError, RouteNotFound, UnexpectedFault, UriTooLong

log = logging.getLogger(__name__)
access_log = logging.getLogger("api.access")

MAX_URI_BYTES = 8192
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_CLIENT_WENT = 499  # what the log says where no answer was sent: nginx's number for it


class Envelope:
    """The outermost part of the application."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        id = begin_request(headers.get(HEADER))
        scope.setdefault("state", {})
        answer = _Answer(send, id, head=scope["method"] == "HEAD")
        # A HEAD is a GET whose body is kept back, unless a route is made for it.
        inner = {**scope, "method": "GET"} if answer.head and "HEAD" not in methods_of(scope["app"], scope) else scope
        began = time.perf_counter()
        try:
            if (refusal := refused(scope["method"], scope["path"], _uri_bytes(scope), headers)) is not None:
                await problem(refusal, scope["path"])(inner, receive, answer.send)
            else:
                with answer.rest_unwanted:
                    await self._app(inner, receive, answer.send)
        except Exception as error:
            log.error("%s %s failed", scope["method"], json.dumps(scope["path"]), exc_info=error)
            if answer.status is not None:
                raise  # the server cuts the connection: the answer that has begun is not whole
            await problem(UnexpectedFault(), scope["path"])(inner, receive, answer.send)
        finally:
            self._tell(inner, scope["method"], answer.status or _CLIENT_WENT, time.perf_counter() - began)

    def _tell(self, scope: Scope, method: str, status: int, seconds: float) -> None:
        self._measures.request(method, _template(scope), status, seconds)
        # The query is left out: it may name what is nobody's business.
        access_log.info(
            "method=%s path=%s status=%d ms=%.1f key=%s client=%s",
            json.dumps(method),
            json.dumps(scope["path"]),
            status,
            seconds * 1000,
            json.dumps(scope["state"].get("key_name")),
            (scope.get("client") or ("-",))[0],
        )


class _Answer:
    """The answer on its way out: its headers completed, its status remembered, the body of a HEAD kept back."""

    def __init__(self, send: Send, id: str, *, head: bool) -> None:
        self._send = send
        self._id = id
        self.head = head
        self.status: int | None = None
        self.rest_unwanted = anyio.CancelScope()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[HEADER] = self._id
            headers.setdefault("X-Content-Type-Options", "nosniff")
        elif self.head:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            self.rest_unwanted.cancel()  # an answer that streams would go on for nobody
            return
        await self._send(message)


def refused(method: str, path: str, uri_bytes: int, headers: Headers) -> RehostError | None:
    """Why a request is not looked at any further, whatever it asks for; None where it is."""
    if uri_bytes > MAX_URI_BYTES:
        return UriTooLong(limit_bytes=MAX_URI_BYTES)
    if "\0" in path:  # PostgreSQL has no such text
        return RouteNotFound(method=method, path=path.replace("\0", "%00"))
    # The console's own pages look at the origin of their forms themselves, and answer a page.
    if path.startswith("/v1/") and method not in SAFE_METHODS and _crosses_sites(headers):
        return Forbidden(reason="a page of another site sent it")
    return None


def _crosses_sites(headers: Headers) -> bool:
    """Whether a browser says that another site's page made the request.

    Fetch metadata (https://www.w3.org/TR/fetch-metadata/) tells; browsers without it send Origin. Another port of
    this machine is the same site, and not ours: same-site is refused too.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in {"same-origin", "none"}
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _template(scope: Scope) -> str | None:
    """The path as its route has it, with names for ids; None where no route answered."""
    template: str | None = getattr(scope.get("route"), "path", None)
    if template is None:
        return None
    # A route knows its own part alone, not that of the router that it was included by.
    own = template
    for name, value in scope.get("path_params", {}).items():
        own = own.replace(f"{{{name}}}", str(value))
    path: str = scope["path"]
    return path.removesuffix(own) + template if path.endswith(own) else template


def _uri_bytes(scope: Scope) -> int:
    return len(scope.get("raw_path") or scope["path"].encode()) + len(scope["query_string"])

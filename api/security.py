"""Who may ask: on the loopback interface anybody, elsewhere whoever has a key."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.envelope import SAFE_METHODS
from rehost.catalog.scopes import Scope
from rehost.errors import Forbidden, Unauthenticated
from rehost.settings import Settings

_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_bearer = HTTPBearer(
    scheme_name="key",
    auto_error=False,
    description="A key that `rehost key add` printed, or one of REHOST_API_KEYS. Not needed where there is none.",
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that bind address."""
    return host in {"127.0.0.1", "localhost", "::1"}


def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raises Unauthenticated for a missing or wrong key; Forbidden where, without keys, another name was asked for.

    The second keeps web pages out that make a name of their own point at 127.0.0.1 (DNS rebinding).
    """
    settings: Settings = request.app.state.settings
    if not settings.api_keys:
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        if name.lower() not in _LOOPBACK_NAMES:
            raise Forbidden(reason="it names another host than this machine")
        return
    given = credentials.credentials.encode() if credentials else b""
    # Every key is compared, each in constant time, so that the time tells nothing.
    if not any([hmac.compare_digest(given, key.encode()) for key in settings.api_keys]):  # noqa: C419
        raise Unauthenticated()


def scope_needed(method: str, path: str) -> Scope:
    """The scope that a request needs. `path` is the request's, or its template.

    What is not known to be less needs admin, so that a new route is closed until it is decided.
    """
    if method in SAFE_METHODS:
        return Scope.READ
    if method == "DELETE":
        return Scope.ADMIN
    of_a_job = path == "/v1/jobs" or path.startswith("/v1/jobs/")
    discovers = path.startswith("/v1/sources/") and path.endswith("/discover")
    return Scope.RUN if of_a_job or discovers else Scope.ADMIN

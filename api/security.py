"""Who may ask: on the loopback interface anybody, elsewhere whoever has a key."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from rehost.errors import Forbidden, Unauthenticated
from rehost.settings import Settings

_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_bearer = HTTPBearer(auto_error=False, description="a key of REHOST_API_KEYS; not needed where none is set")


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

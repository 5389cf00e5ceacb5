"""Who may ask: on the loopback interface anybody while there are no keys, else whoever has one that covers it."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.envelope import SAFE_METHODS
from rehost.catalog.api_keys import ApiKey, hash_of_key
from rehost.catalog.catalog import Catalog
from rehost.catalog.scopes import Scope
from rehost.errors import Forbidden, TooManyRequests, Unauthenticated
from rehost.settings import Settings

MAX_FAILURES = 20
FAILURE_SECONDS = 60.0
_MAX_CLIENTS = 10_000
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_bearer = HTTPBearer(
    scheme_name="key",
    auto_error=False,
    description="A key that `rehost key add` printed, or one of REHOST_API_KEYS. Not needed where there is none.",
)


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may. `name` is None where no key is needed."""

    name: str | None
    scope: Scope


class Failures:
    """Wrong keys of the last minute, by client; of bounded size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since: OrderedDict[str, tuple[float, int]] = OrderedDict()  # the first of them, and how many

    def check(self, client: str) -> None:
        """Raises TooManyRequests where the client sent MAX_FAILURES wrong keys within a minute."""
        with self._lock:
            began, count = self._since.get(client, (0.0, 0))
            left = began + FAILURE_SECONDS - time.monotonic()
            if count >= MAX_FAILURES and left > 0:
                raise TooManyRequests(client=client, retry_after=math.ceil(left))

    def add(self, client: str) -> None:
        """The client sent a wrong key."""
        moment = time.monotonic()
        with self._lock:
            began, count = self._since.pop(client, (moment, 0))
            if moment - began >= FAILURE_SECONDS:
                began, count = moment, 0
            self._since[client] = (began, count + 1)
            while len(self._since) > _MAX_CLIENTS:
                self._since.popitem(last=False)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that bind address."""
    return host in {"127.0.0.1", "localhost", "::1"}


def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raises Unauthenticated for a missing or wrong key, TooManyRequests for many of them, Forbidden for a key whose
    scope is too small; and Forbidden where, without keys, another name was asked for.

    The last keeps web pages out that make a name of their own point at 127.0.0.1 (DNS rebinding).
    """
    client = client_of(request)
    failures: Failures = request.app.state.failures
    if credentials is not None:
        failures.check(client)
    try:
        caller = caller_of(request, hash_of_key(credentials.credentials) if credentials else None)
    except Unauthenticated:
        if credentials is not None:
            failures.add(client)
        raise
    request.scope["state"]["key_name"] = caller.name
    needed = scope_needed(request.method, request.scope["path"])
    if not caller.scope.covers(needed):
        raise Forbidden(reason=f"the key {caller.name} has the scope {caller.scope}, and this needs {needed}")


def caller_of(request: Request, key_hash: str | None) -> Caller:
    """Who sends a key of that SHA-256; None: no key. Raises Unauthenticated, and Forbidden for a name not ours."""
    settings: Settings = request.app.state.settings
    catalog: Catalog = request.app.state.catalog
    configured, made = settings.api_key_hashes, catalog.api_keys()
    if not configured and not made:
        _check_this_machine(request, settings)
        return Caller(None, Scope.ADMIN)
    given = key_hash or ""
    # Every key is compared, each in constant time, so that the time tells nothing.
    known = [hmac.compare_digest(given, hash) for hash in configured]
    found: list[ApiKey] = [key for key in made if hmac.compare_digest(given, key.hash)]
    if found:
        catalog.note_use(found[0])
        return Caller(found[0].name, found[0].scope)
    if any(known):
        return Caller("REHOST_API_KEYS", Scope.ADMIN)
    raise Unauthenticated()


def _check_this_machine(request: Request, settings: Settings) -> None:
    if not is_loopback(settings.api_host):
        raise Unauthenticated()  # the last key was removed while the API listens to others
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name.lower() not in _LOOPBACK_NAMES:
        raise Forbidden(reason="it names another host than this machine")


def client_of(request: Request) -> str:
    """The client's address; of IPv6 the network, which is one customer's."""
    host = request.client.host if request.client else "-"
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else host


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

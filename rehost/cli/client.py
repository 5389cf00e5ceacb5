"""The API as the command line speaks to it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from rehost.errors import ApiUnreachable, RehostError, error_classes
from rehost.settings import Settings

_CONNECT_SECONDS = 10.0
_UPLOAD_SECONDS = 3600.0
_ANSWER_SECONDS = 900.0  # registering a slow server takes minutes
_EVENTS_SECONDS = 45.0  # without a word; the API says something every 15 s
_NO_CONTENT = 204
_EXIT_CODES = {cls.code: cls.exit_code for cls in error_classes()}

Json = dict[str, Any]


class Refused(Exception):
    """The API answered with a problem."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.body: Json = dict(body)
        self.code = str(body.get("code", f"HTTP {status}"))
        self.message = str(body.get("detail", f"The API answered {status}."))
        self.remedy = str(body.get("remedy", ""))
        self.faults = [(str(f.get("pointer")), str(f.get("message"))) for f in body.get("errors", [])]
        self.exit_code = _EXIT_CODES.get(self.code, 2 if 400 <= status < 500 else 1)
        super().__init__(self.message)


def exit_code_of(code: str) -> int:
    """The exit code that an error's class gives; 1 for a code that this version does not know."""
    return _EXIT_CODES.get(code, RehostError.exit_code)


def base_url(settings: Settings) -> str:
    """Where the API is; a server that listens on every address is reached on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.api_host, settings.api_host)
    return f"http://[{host}]:{settings.api_port}" if ":" in host else f"http://{host}:{settings.api_port}"


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    id: str | None
    name: str
    data: Json


def _events(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a stream (WHATWG HTML, 9.2.6). Raises ValueError for data that is no JSON object."""
    id: str | None = None
    name, data = "message", ""
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "id":
            id = value
        elif field == "event":
            name = value
        elif field == "data":
            data += value
        elif not line:
            if data:
                content = json.loads(data)
                if not isinstance(content, dict):
                    raise ValueError("an event without an object")
                yield Event(id, name, content)
            name, data = "message", ""


@dataclass(frozen=True)
class Download:
    """A file on its way."""

    first: int  # the byte that comes first
    size: int  # of the whole file
    pieces: Iterator[bytes]


class Client:
    """One connection to the API. Raises ApiUnreachable where nothing answers, Refused for a problem."""

    def __init__(self, settings: Settings) -> None:
        headers = {"Authorization": f"Bearer {key}"} if (key := settings.key_to_send) else {}
        self._url = base_url(settings)
        self._http = httpx.Client(
            base_url=self._url,
            headers=headers,
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            trust_env=False,  # a proxy of the environment does not lead to this machine
        )

    def get(self, path: str, **query: Any) -> Json:
        """Parameters that are None are not sent."""
        return self._ask("GET", path, query)

    def post(self, path: str, body: Json | None = None, *, key: str | None = None, **query: Any) -> Json:
        """`key` is the idempotency key."""
        return self._ask("POST", path, query, body, {"Idempotency-Key": key} if key else {})

    def upload(self, path: str, content: bytes, media_type: str, *, key: str | None = None, **query: Any) -> Json:
        """Send a file as it is. The answer may take an hour: it comes when all of the file was done."""
        headers = {"Content-Type": media_type, **({"Idempotency-Key": key} if key else {})}
        return self._ask("POST", path, query, headers=headers, content=content, seconds=_UPLOAD_SECONDS)

    def patch(self, path: str, body: Json) -> Json:
        """Change what the body names."""
        return self._ask("PATCH", path, {}, body)

    def delete(self, path: str, **query: Any) -> Json:
        """Parameters that are None are not sent; an empty object where nothing is answered."""
        return self._ask("DELETE", path, query)

    @contextlib.contextmanager
    def download(self, path: str, first: int = 0) -> Iterator[Download]:
        """A file from that byte on, or from its beginning where the API does not go on there."""
        headers = {"Range": f"bytes={first}-"} if first else {}
        try:
            with self._http.stream("GET", path, headers=headers) as answer:
                if answer.status_code == 416:  # all of it is here
                    total = int(answer.headers["content-range"].rpartition("/")[2])
                    yield Download(first if first == total else 0, total, iter(()))
                    return
                if not answer.is_success:
                    answer.read()
                    raise Refused(answer.status_code, answer.json())
                begins = first if answer.status_code == 206 else 0
                yield Download(begins, begins + int(answer.headers["content-length"]), answer.iter_bytes(1 << 20))
        except (httpx.HTTPError, httpx.StreamError, ValueError, KeyError) as error:
            raise ApiUnreachable(url=self._url, reason=str(error) or type(error).__name__) from error

    def events(self, path: str, last_event_id: str | None = None) -> Iterator[Event]:
        """Server-sent events until the API ends them, or the line breaks (ApiUnreachable)."""
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_event_id} if last_event_id else {})}
        timeout = httpx.Timeout(_EVENTS_SECONDS, connect=_CONNECT_SECONDS)
        try:
            with self._http.stream("GET", path, headers=headers, timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                    raise Refused(answer.status_code, answer.json())
                yield from _events(answer.iter_lines())
        except (httpx.HTTPError, httpx.StreamError, ValueError) as error:
            raise ApiUnreachable(url=self._url, reason=str(error) or type(error).__name__) from error

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        content: bytes | None = None,
        seconds: float = _ANSWER_SECONDS,
    ) -> Json:
        parameters = {name: value for name, value in query.items() if value is not None}
        try:
            timeout = httpx.Timeout(seconds, connect=_CONNECT_SECONDS)
            answer = self._http.request(
                method, path, params=parameters, json=body, content=content, headers=headers, timeout=timeout
            )
            told = {} if answer.status_code == _NO_CONTENT else answer.json()
        except httpx.HTTPError as error:
            raise ApiUnreachable(url=self._url, reason=str(error) or type(error).__name__) from error
        except ValueError as error:
            raise ApiUnreachable(url=self._url, reason="what answers there is not Rehost") from error
        if not isinstance(told, dict):
            raise ApiUnreachable(url=self._url, reason="what answers there is not Rehost")
        if answer.is_success:
            return told
        raise Refused(answer.status_code, told)

    def close(self) -> None:
        self._http.close()

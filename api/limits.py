"""Bounds on the body of a request, before anything reads it: how large, and how slow."""

from __future__ import annotations

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem
from rehost.errors import RehostError, RequestTimeout, RequestTooLarge

MAX_REQUEST_BYTES = 1 << 20
BODY_SECONDS = 30.0


class ClientWentAway(Exception):
    """Nobody waits for the answer any more."""


class RequestLimits:
    """Answers 413 to a body of more than MAX_REQUEST_BYTES, whether or not it announced its length, and 408 to one
    that is not there within BODY_SECONDS."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await _body(receive)
        except ClientWentAway:
            return
        except RehostError as error:
            answer = problem(error, scope["path"])
            answer.headers["Connection"] = "close"
            await answer(scope, receive, send)
            return
        whole: Message = {"type": "http.request", "body": body, "more_body": False}
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return whole

        await self._app(scope, replay, send)


async def _body(receive: Receive) -> bytes:
    """The whole body. Raises RequestTooLarge, RequestTimeout, ClientWentAway."""
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise ClientWentAway
                body += message.get("body", b"")
                if len(body) > MAX_REQUEST_BYTES:
                    raise RequestTooLarge(limit_bytes=MAX_REQUEST_BYTES)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise RequestTimeout(seconds=round(BODY_SECONDS)) from error

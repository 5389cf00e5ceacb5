"""A bound on the size of a request, before anything reads it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import problem
from rehost.errors import RequestTooLarge

MAX_REQUEST_BYTES = 1 << 20


class RequestSizeLimit:
    """Answers 413 to a body of more than MAX_REQUEST_BYTES, whether or not it announced its length."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client went away
            body += message.get("body", b"")
            if len(body) > MAX_REQUEST_BYTES:
                answer = problem(RequestTooLarge(limit_bytes=MAX_REQUEST_BYTES), scope["path"])
                answer.headers["Connection"] = "close"
                await answer(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        whole: Message = {"type": "http.request", "body": bytes(body), "more_body": False}
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return whole

        await self._app(scope, replay, send)

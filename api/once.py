"""Idempotency-Key: a request that is sent again is answered with the first answer, and makes nothing new."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from starlette.responses import Response

from api.dependencies import TheCatalog
from api.etags import JobAnswer
from rehost.catalog.catalog import Catalog
from rehost.catalog.faults import Fault, raise_faults
from rehost.catalog.idempotency import ABANDONED, Answer

_MAX_KEY = 64


class Once:
    """Answers one creating request."""

    def __init__(self, catalog: Catalog, request: Request, key: str | None) -> None:
        self._catalog = catalog
        self._what = f"{request.method} {request.url.path}?{request.url.query}"
        self._key = key

    def answer(
        self,
        body: BaseModel,
        make: Callable[[], tuple[BaseModel, str | None]],
        *,
        status: int = 201,
        abandoned: timedelta = ABANDONED,
    ) -> Response:
        """That status with what `make` gives, and its location; or the first answer to the same request.

        `abandoned` is longer than `make` takes.

        Raises IdempotencyKeyReused, IdempotencyKeyBusy, and what `make` raises: then the key is free again.
        """
        if self._key is None:
            return _response(_made(status, *make()))
        fingerprint = hashlib.sha256(f"{self._what}\n{body.model_dump_json()}".encode()).hexdigest()
        if (first := self._catalog.reserve_key(self._key, fingerprint, abandoned=abandoned)) is not None:
            return _response(first, replayed=True)
        try:
            created = _made(status, *make())
        except BaseException:
            self._catalog.release_key(self._key)
            raise
        self._catalog.settle_key(self._key, created)
        return _response(created)


def get_once(
    request: Request,
    catalog: TheCatalog,
    idempotency_key: Annotated[
        str | None, Header(description=f"at most {_MAX_KEY} ASCII characters; the same request again makes nothing new")
    ] = None,
) -> Once:
    if idempotency_key is not None:
        printable = idempotency_key.isascii() and idempotency_key.isprintable()
        if not 1 <= len(idempotency_key) <= _MAX_KEY or not printable:
            raise_faults([Fault("Idempotency-Key", f"has 1 to {_MAX_KEY} printable ASCII characters")])
    return Once(catalog, request, idempotency_key)


def _made(status: int, body: BaseModel, location: str | None) -> Answer:
    return Answer(status, body.model_dump(mode="json"), location)


def _response(answer: Answer, *, replayed: bool = False) -> Response:
    headers = {"Location": answer.location} if answer.location else {}
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return JobAnswer(answer.body, answer.status, headers)


TheOnce = Annotated[Once, Depends(get_once)]

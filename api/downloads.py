"""A file as the answer to a request: whole or a part of it (RFC 9110, chapter 14), in bounded memory."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from typing import BinaryIO
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rehost.errors import ImageFileNotFound, RangeNotSatisfiable
from rehost.images.files import ImageFile

_PIECE_BYTES = 1 << 20
_RANGE = re.compile(r"bytes=[ \t]*(\d{0,30})-(\d{0,30})[ \t]*", re.IGNORECASE)

HEADERS = {
    "Accept-Ranges": {"schema": {"type": "string"}, "description": "`bytes`: parts of it can be asked for"},
    "ETag": {"schema": {"type": "string"}, "description": "stays as long as the file; for `If-Range`, `If-None-Match`"},
    "Repr-Digest": {"schema": {"type": "string"}, "description": "SHA-256 of the whole file, where it is recorded"},
}


def download(image_id: str, file: ImageFile, request: Request) -> Response:
    """The file, or the one range of it that is asked for; several ranges at once are answered with the whole.

    Raises ImageFileNotFound, RangeNotSatisfiable.
    """
    headers = {
        "Accept-Ranges": "bytes",
        "ETag": f'"{file.etag}"',
        "Cache-Control": "private, no-cache",
        "Content-Disposition": _disposition(file),
        "X-Content-Type-Options": "nosniff",
    }
    if file.sha256 is not None:
        headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(file.sha256)).decode()}:"
    if _names(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    try:
        opened = file.path.open("rb")  # from now on it can be deleted: who reads it reads it to its end
    except OSError as error:
        raise ImageFileNotFound(id=image_id, path=file.path) from error
    try:
        size = opened.seek(0, 2)
        # RFC 9110, 14.2: a range is for GET alone.
        wanted = _range(request.headers, headers["ETag"], size) if request.method == "GET" else None
    except BaseException:
        opened.close()
        raise
    first, last = wanted or (0, size - 1)
    headers["Content-Length"] = str(last - first + 1)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        opened.close()
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    return _Download(opened, first, last, status, headers, file.media_type)


class _Download(StreamingResponse):
    """The bytes from the first to the last one. The file is closed, also where the client goes away."""

    def __init__(
        self, file: BinaryIO, first: int, last: int, status: int, headers: Mapping[str, str], media_type: str
    ) -> None:
        super().__init__(_pieces(file, first, last), status, headers, media_type)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()


def _pieces(file: BinaryIO, first: int, last: int) -> Iterator[bytes]:
    file.seek(first)
    left = last - first + 1
    while left > 0 and (piece := file.read(min(_PIECE_BYTES, left))):
        left -= len(piece)
        yield piece


def _range(headers: Mapping[str, str], etag: str, size: int) -> tuple[int, int] | None:
    """The first and the last byte of what is asked for; None: all of it."""
    told = headers.get("range")
    if told is None or headers.get("if-range", etag) != etag:
        return None
    found = _RANGE.fullmatch(told)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:  # so many bytes from the end
        first, last = max(0, size - int(found[2])), size - 1
        beyond = found[2].strip("0") == ""
    else:
        first, last = int(found[1]), min(size - 1, int(found[2] or size - 1))
        if found[2] and int(found[2]) < first:
            return None
        beyond = first >= size
    if beyond or size == 0:
        raise RangeNotSatisfiable(size=size, range=told)
    return first, last


def _names(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    return any(one.strip().removeprefix("W/") in (etag, "*") for one in header.split(","))


def _disposition(file: ImageFile) -> str:
    """RFC 6266: the name as people gave it, and a plain one for who does not read that."""
    return f"attachment; filename=\"{file.path.name}\"; filename*=UTF-8''{quote(file.name, safe='')}"

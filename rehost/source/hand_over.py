"""The hand-over of xxhash and zstandard to an agent whose Python lacks them: what is worth it, and how it goes.

Where it cannot be, the agent works without them, slower, and the notes of the session say so.
"""

from __future__ import annotations

import itertools
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rehost.agent import protocol
from rehost.replication.tree import printable
from rehost.source.channel import Channel
from rehost.source.interpreters import Target
from rehost.source.session import FileRequest
from rehost.source.wheels import NoWheel, WheelFolder

WORTHWHILE_BYTES = 32 << 20
"""Of content to be read: with less, the gain would not be worth the half megabyte that zstandard takes to send."""
_LOOKED_AT = 16_384
_PACKING = 6  # of zlib; 9 takes twice the time and saves one KB

_Names = Annotated[list[Annotated[str, Field(max_length=50)]], Field(max_length=20)]


class Loaded(BaseModel):
    """What an agent says after a hand-over: what it can do now."""

    model_config = ConfigDict(frozen=True, strict=True)

    hashes: _Names
    codecs: _Names
    codec: str = Field(max_length=50)
    refused: dict[Annotated[str, Field(max_length=50)], Annotated[str, Field(max_length=1000)]] = Field(max_length=10)


class Equipment:
    """What the Python at the other end of a session can do, and how it comes to do more."""

    def __init__(
        self,
        channel: Channel,
        *,
        python: str,
        target: Target | None,
        hashes: Sequence[str],
        codecs: Sequence[str],
        codec: str,
        compress_level: int,
        folder: Path | None,
    ) -> None:
        self.hashes = tuple(hashes)
        self.codec = codec
        self.notes: list[str] = []  # sentences for people
        self._channel = channel
        self._name = f"Python {printable(python.encode('utf-8', 'replace'))}"
        self._target = target
        self._codecs = tuple(codecs)
        self._compress_level = compress_level
        self._folder = WheelFolder(folder) if folder is not None else None
        self._tried: set[str] = set()

    def complete(self, expected_bytes: int, *, blocks: bool) -> None:
        """Hand over what is of use for reading so many bytes of content, and is not there; each package once.

        Where that takes a fetch it may take a minute for each. Raises what the channel raises.
        """
        if self._folder is None or (expected_bytes < WORTHWHILE_BYTES and not blocks):
            return
        found = {}
        for package in self._lacking(blocks):
            if package == "zstandard" and expected_bytes < WORTHWHILE_BYTES:
                continue
            self._tried.add(package)
            try:
                if self._target is None:
                    raise NoWheel("no wheels are made for that Python")
                found[package] = self._folder.files(package, self._target)
            except NoWheel as error:
                self._do_without(package, str(error))
        if found:
            self._send(found)

    def _lacking(self, blocks: bool) -> Iterator[str]:
        if blocks and "xxh3_128" not in self.hashes and "xxhash" not in self._tried:
            yield "xxhash"
        if self._compress_level and "zstd" not in self._codecs and "zstandard" not in self._tried:
            yield "zstandard"

    def _send(self, packages: dict[str, dict[str, bytes]]) -> None:
        listed = [(package, [(name, len(text)) for name, text in files.items()]) for package, files in packages.items()]
        best_first = sorted(protocol.CODECS, key=protocol.CODECS.__getitem__, reverse=True)
        head = json.dumps({"packages": listed, "codecs": best_first}, separators=(",", ":")).encode("ascii")
        packed = zlib.compress(b"".join(text for files in packages.values() for text in files.values()), _PACKING)
        self._channel.send(protocol.WHEELS, struct.pack(">I", len(head)), head, packed)
        try:
            loaded = Loaded.model_validate_json(self._channel.expect(protocol.LOADED))
        except ValidationError as error:
            raise self._channel.violation("it does not say what it has loaded") from error
        if loaded.codec not in protocol.CODECS or "sha256" not in loaded.hashes:
            raise self._channel.violation("it cannot do any more what it could")
        self.hashes, self._codecs, self.codec = tuple(loaded.hashes), tuple(loaded.codecs), loaded.codec
        for package in packages:
            if package in loaded.refused:
                self._do_without(package, printable(loaded.refused[package][:300].encode("utf-8", "replace")))
            else:
                self.notes.append(f"{package} was handed over to the source's {self._name}.")

    def _do_without(self, package: str, reason: str) -> None:
        self.notes.append(f"The source's {self._name} has no {package}, and goes on without it, slower: {reason}.")


def looked_ahead(requests: Iterable[FileRequest]) -> tuple[int, Iterator[FileRequest]]:
    """How many bytes will be read, as far as it matters here, and the requests once more."""
    waiting = iter(requests)
    seen: list[FileRequest] = []
    size = 0
    for request in waiting:
        seen.append(request)
        size += request.size
        if len(seen) >= _LOOKED_AT:  # very many small files are as good as large ones
            size = max(size, WORTHWHILE_BYTES)
        if size >= WORTHWHILE_BYTES:
            break
    return size, itertools.chain(seen, waiting)

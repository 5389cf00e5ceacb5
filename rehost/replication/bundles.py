"""Bundles: chunks that travel and are stored together, their bytes joined and compressed once.

Small files alone compress badly and cost a record each; joined they do neither. A bundle that arrives compressed by
zstd goes into a pack as it came, so a server's content is compressed once on its way.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import zstandard

RAW, ZLIB, ZSTD = 0, 1, 2  # codecs, the same numbers on the wire and in packs (packs hold RAW and ZSTD alone)
BUNDLE_BYTES = 1 << 20  # a bundle is closed before its content would be longer, but holds at least one chunk

_local = threading.local()  # zstd contexts may not be shared between threads


class BadBundle(ValueError):
    """The bytes are not the chunks that they are said to be; says why."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """Chunks in order, and their joined content as `codec` packed it. Nothing about it is believed before `raw`."""

    names: tuple[bytes, ...]  # SHA-256 of each chunk
    lengths: tuple[int, ...]  # bytes of each chunk
    codec: int
    payload: bytes

    @classmethod
    def of(cls, chunks: Sequence[bytes]) -> Bundle:
        """A bundle of these chunks, not compressed."""
        names = tuple(hashlib.sha256(chunk).digest() for chunk in chunks)
        return cls(names, tuple(len(chunk) for chunk in chunks), RAW, b"".join(chunks))

    @property
    def size(self) -> int:
        """Bytes of all chunks together."""
        return sum(self.lengths)

    def raw(self) -> bytes:
        """The joined content, every chunk compared with its name. Never makes more bytes than `lengths` say.

        Raises BadBundle.
        """
        raw = unpack(self.codec, self.payload, self.size)
        view, at = memoryview(raw), 0
        for name, length in zip(self.names, self.lengths, strict=True):
            if hashlib.sha256(view[at : at + length]).digest() != name:
                raise BadBundle("content that does not match its SHA-256")
            at += length
        return raw


def unpack(codec: int, payload: bytes | memoryview, length: int) -> bytes:
    """What was packed, which has that many bytes. Raises BadBundle; takes no more memory than `length` says."""
    try:
        raw = _unpacked(codec, payload, length)
    except (zlib.error, zstandard.ZstdError, MemoryError) as error:
        raise BadBundle("packed content that does not unpack") from error
    if len(raw) != length:
        raise BadBundle("packed content of another length than it says")
    return raw


def _unpacked(codec: int, payload: bytes | memoryview, length: int) -> bytes:
    if codec == RAW:
        return payload if isinstance(payload, bytes) else bytes(payload)
    if codec == ZLIB:
        stream = zlib.decompressobj()
        raw = stream.decompress(payload, length + 1)
        if not stream.eof or stream.unused_data or stream.unconsumed_tail:
            raise BadBundle("packed content of another length than it says")
        return raw
    if codec == ZSTD:
        # The frame's own claim decides how much memory is taken, so it is compared first; -1: it makes none.
        if zstandard.frame_content_size(payload) not in (-1, length):
            raise BadBundle("packed content of another length than it says")
        if not hasattr(_local, "decompressor"):
            _local.decompressor = zstandard.ZstdDecompressor()
        raw = _local.decompressor.decompress(payload, max_output_size=length, allow_extra_data=False)
        return bytes(raw)
    raise BadBundle(f"the codec {codec} is unknown")

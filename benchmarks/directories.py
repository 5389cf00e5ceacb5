"""The ext4 writer on 100,000 files: all in one directory, beside the same files over 1,000 directories."""

from __future__ import annotations

import hashlib
from pathlib import Path
from uuid import UUID

import pyarrow as pa

from benchmarks.measure import Row, compare
from image_builders.disk.ext4 import needed_bytes, write_ext4
from rehost.progress import silent
from rehost.replication.manifest import Chunk, Entry, table_of

BAR = 3.0
_FILES = 100_000
_CONTENT = b"one of many\n"
_NAME = hashlib.sha256(_CONTENT).digest()
_UUID = UUID("0d3cbe0f-6e5a-4bd5-8a0a-2d1c4d8f7b22")


class _Reader:
    """The one chunk that all files have."""

    def read_chunk(self, sha256: bytes) -> bytes:
        return _CONTENT


def _table(directories: int) -> pa.Table:
    files = [
        Entry(
            b"%04d/message.%08d" % (number % directories, number),
            0o100644,
            size=len(_CONTENT),
            chunks=(Chunk(0, len(_CONTENT), _NAME),),
        )
        for number in range(_FILES)
    ]
    folders = [Entry(b"%04d" % number, 0o040755) for number in range(directories)]
    return table_of([Entry(b"", 0o040755), *folders, *files])


def one_directory(scratch: Path) -> Row:
    """Compare; `scratch` is an empty folder."""
    together, spread = _table(1), _table(1_000)
    size = max(needed_bytes(together), needed_bytes(spread))

    path = scratch / "filesystem.raw"

    def write(table: pa.Table) -> None:
        with path.open("w+b") as target:
            write_ext4(target, 0, size, table, _Reader(), uuid=_UUID, label="many", progress=silent)

    return compare(
        "100,000 files in one directory",
        lambda: write(together),
        lambda: write(spread),
        "over 1,000 directories",
        BAR,
        lambda: path.unlink(missing_ok=True),
    )

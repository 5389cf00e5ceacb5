"""Images that tests write, and the program that judges them."""

from __future__ import annotations

import hashlib
import re
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from image_builders.disk.ext4 import write_ext4
from image_builders.disk.ext4.htree import hash_names
from image_builders.disk.ext4.superblock import identity_of
from rehost.progress import silent
from rehost.replication.manifest import CHUNK_BYTES, Chunk, Entry
from tests.support.ext4_judge import Judged, differences, entries_of_table, read_filesystem

BLOCK = 4096
IMAGE_UUID = uuid.UUID("0b6c1cf1-6f7a-4c1e-9d5c-2a8f3f6f0a11")

_CLEAN = re.compile(
    r"Pass 1: Checking inodes, blocks, and sizes\n"
    r"Pass 2: Checking directory structure\n"
    r"Pass 3: Checking directory connectivity\n"
    r"Pass 4: Checking reference counts\n"
    r"Pass 5: Checking group summary information\n"
    r"[^\n]*: \d+/\d+ files \([\d.]+% non-contiguous\), \d+/\d+ blocks\n"
)


class Chunks:
    """Content by name, in memory."""

    def __init__(self) -> None:
        self.content: dict[bytes, bytes] = {}

    def read_chunk(self, sha256: bytes) -> bytes:
        return self.content[sha256]

    def put(self, offset: int, content: bytes) -> Chunk:
        name = hashlib.sha256(content).digest()
        self.content[name] = content
        return Chunk(offset, len(content), name)

    def file(self, path: bytes, *pieces: tuple[int, bytes], size: int | None = None, mode: int = 0o644) -> Entry:
        """A regular file with these pieces of content at their offsets, cut as the agent cuts them."""
        chunks = []
        for start, content in pieces:
            at = start
            while at < start + len(content):
                end = min(start + len(content), (at // CHUNK_BYTES + 1) * CHUNK_BYTES)
                chunks.append(self.put(at, content[at - start : end - start]))
                at = end
        end = chunks[-1].offset + chunks[-1].length if chunks else 0
        return Entry(path, 0o100000 | mode, size=end if size is None else size, chunks=tuple(chunks))


def write_image(path: Path, size_bytes: int, files: pa.Table, chunks: Chunks, *, offset: int = 0) -> Path:
    """A fresh sparse file with the filesystem in it."""
    path.unlink(missing_ok=True)
    path.touch()
    with path.open("r+b") as target:
        write_ext4(target, offset, size_bytes, files, chunks, uuid=IMAGE_UUID, label="trial", progress=silent)
    return path


def assert_clean(path: Path) -> None:
    """e2fsck finds nothing, by its whole output and by its status."""
    done = subprocess.run(["e2fsck", "-fn", path], capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert _CLEAN.fullmatch(done.stdout), done.stdout[-4000:]
    assert re.fullmatch(r"e2fsck [\d.]+ \([^)]*\)\n", done.stderr), done.stderr


def whole_blocks(found: dict[bytes, Judged]) -> dict[bytes, Judged]:
    """The same, with data told of in whole blocks up to the size, as a filesystem keeps it."""
    rounded = {}
    for path, judged in found.items():
        ranges: list[tuple[int, int]] = []
        for at, length in judged.data:
            begin = at // BLOCK * BLOCK
            end = min(-(-(at + length) // BLOCK) * BLOCK, judged.entry.size)
            if ranges and begin <= ranges[-1][1]:
                ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
            else:
                ranges.append((begin, end))
        rounded[path] = replace(judged, data=tuple(ranges))
    return rounded


def assert_holds(path: Path, files: pa.Table, chunks: Chunks) -> None:
    """The image has exactly these entries, by the reader of ext4 images."""
    expected = whole_blocks(entries_of_table(files, chunks))
    found = whole_blocks(read_filesystem(path))
    made = () if b"lost+found" in expected else (b"lost+found",)
    assert differences(expected, found, ignore=made) == []


def straddling_names() -> tuple[list[bytes], bytes, bytes]:
    """Names of one directory of IMAGE_UUID's filesystem, two of which have one hash and lie in two leaves.

    Names of 8 bytes make records of 16, so a leaf (filled to seven eighths) has 224: with 223 smaller hashes, the
    first one of the pair is the last of its leaf.
    """
    count = 400_000
    names = [b"%08x" % number for number in range(count)]
    starts = np.arange(count, dtype=np.int64) * 8
    data = np.frombuffer(b"".join(names), np.uint8)
    hashes, minors = hash_names(data, starts, np.full(count, 8, np.int64), identity_of(IMAGE_UUID, b"", 0).hash_seed)
    order = np.lexsort((minors, hashes))
    same = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
    at = int(same[(same > 1_000) & (same < count - 1_000)][0])
    chosen = [*order[at - 223 : at], *order[at : at + 300]]
    return [names[number] for number in chosen], names[order[at]], names[order[at + 1]]

"""What tests of block copies share: filesystems with random use, and regions put back into a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehost.replication.block_index import BlockIndex
from rehost.replication.manifest import ChunkReader
from rehost.source.block_session import Area

MIB = 1 << 20


def area_of(path: Path, *, mount_point: str | None = None, start: int = 0, size: int | None = None) -> Area:
    """All of a file or a device, or a part of it, as an area."""
    fd = os.open(path, os.O_RDONLY)
    end = os.lseek(fd, 0, os.SEEK_END)
    os.close(fd)
    size = end - start if size is None else size
    return Area(0, start, size, "partition", str(path), start, device="0_1", mount_point=mount_point, file=True)


def assemble(index: BlockIndex, number: int, chunks: ChunkReader, target: Path) -> Path:
    """A region as a sparse file."""
    region = index.regions[number]
    with target.open("wb") as file:
        file.truncate(region.size_bytes)
        for rows in index.rows(number):
            for block, name in zip(rows.blocks.tolist(), rows.names, strict=True):
                file.seek(block * region.block_bytes)
                file.write(chunks.read_chunk(name.tobytes()))
        assert file.seek(0, os.SEEK_END) == region.size_bytes
    return target


@contextlib.contextmanager
def mounted(image: Path, directory: Path, options: str = "loop") -> Iterator[Path]:
    """A filesystem, mounted; the test is skipped where that cannot be."""
    directory.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", options, image, directory], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no loop mounts of this here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def loop_of(image: Path) -> Path:
    """The loop device that a mounted image is on."""
    told = subprocess.run(["losetup", "-j", image, "-n", "-O", "NAME"], capture_output=True, text=True, check=True)
    return Path(told.stdout.split()[0])


def use(root: Path, seed: int, files: int = 150) -> None:
    """Random use: files of many sizes, deleted ones between them, sparse ones, hard links, folders."""
    chance = random.Random(seed)
    for number in range(files):
        folder = root / f"folder-{chance.randrange(12)}"
        folder.mkdir(exist_ok=True)
        path = folder / f"file-{number}"
        with path.open("wb") as file:
            if not number % 17:
                file.seek(chance.randrange(40 * MIB))
            file.write(chance.randbytes(chance.choice((10, 3000, 70_000, 900_000))))
        if not number % 13:
            os.link(path, folder / f"link-{number}")
        if number % 3 == 1:
            path.unlink()
    os.sync()


def tree_of(root: Path) -> dict[str, str]:
    """Every name below a folder, with what it holds."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder) / name
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path.relative_to(root))] = f"{status.st_mode:o} {status.st_size} {status.st_mtime_ns} {content}"
    return found

"""The reader of ext4 images beside the kernel: what the kernel wrote, entry for entry, and journals left dirty."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from rehost.source.ext4_reader import Ext4Image
from tests.support.ext4_judge import Judged, differences, read_filesystem, read_mounted

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount"),
    pytest.mark.skipif(shutil.which("mke2fs") is None, reason="mke2fs is not installed"),
]


@contextmanager
def mounted(image: Path, directory: Path, options: str = "loop") -> Iterator[Path]:
    directory.mkdir(exist_ok=True)
    result = subprocess.run(["mount", "-o", options, str(image), str(directory)], capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"no loop mounts here: {result.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def make(image: Path, *options: str, size: str = "96M") -> None:
    subprocess.run(["mke2fs", "-q", "-F", *options, str(image), size], check=True, capture_output=True)


def write_everything(root: Path, names: int = 20_000) -> None:
    """What a kernel can write into ext4, without what mke2fs -d would lose."""
    chance = random.Random(2)
    for path, mode, device in (
        ("null", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        ("disk", stat.S_IFBLK | 0o660, os.makedev(259, 300_000)),
        ("wide", stat.S_IFCHR | 0o600, os.makedev(4000, 70)),
        ("pipe", stat.S_IFIFO | 0o640, 0),
        ("socket", stat.S_IFSOCK | 0o755, 0),
    ):
        os.mknod(root / path, mode, device)
    (root / "set-id").write_bytes(b"program")
    (root / "set-id").chmod(0o6755)
    os.chown(root / "set-id", 70_000, 4_000_000_000)
    big = root / "fragments"
    with big.open("wb") as file:
        for number in range(700):
            file.seek(number * 3 * 4096)
            file.write(chance.randbytes(4096))
            if number % 100 == 0:
                os.fsync(file.fileno())
    with (root / "reserved").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 1 << 20)
        file.seek(300_000)
        file.write(b"written in the middle")
    (root / "large").write_bytes(chance.randbytes(5_000_000))
    os.truncate(root / "large", 4_999_999)
    for name, value in (("user.a", b""), ("user.b", b"b" * 700), ("security.c", b"\0\xff"), ("trusted.d", b"d")):
        os.setxattr(root / "large", name, value)
    (root / "owned").mkdir()
    subprocess.run(
        ["setfacl", "-m", "u:1001:rwx,g:2002:r-x,d:u:33:rw,d:g::r", str(root / "owned")],
        check=True,
    )
    subprocess.run(["setfacl", "-m", "u:7:r", str(root / "set-id")], check=True)
    (root / "flagged").touch()
    (root / "kept").touch()
    subprocess.run(["chattr", "+d", str(root / "flagged")], check=True)
    (root / "target" / ("n" * 255)).mkdir(parents=True)
    for length in (1, 59, 60, 61, 1000):
        (root / f"link {length}").symlink_to("l" * length)
    deep = root
    for number in range(60):
        deep = deep / f"level {number}"
        deep.mkdir()
    (root / "many").mkdir()
    for number in range(names):
        os.close(os.open(root / f"many/{number} {'x' * (number % 50)}", os.O_CREAT, 0o600))
    for number in range(0, names, 7):
        (root / f"many/{number} {'x' * (number % 50)}").unlink()
    os.link(root / "large", root / "many/again")
    os.link(root / "null", root / "target/null")
    os.utime(root / "kept", ns=(1, 2_000_000_000_123_456_789))
    os.utime(root / "large", ns=(-5_000_000_001, 4_500_000_000_999_999_999))


def fill(path: Path) -> None:
    """Take every free block for data: also those whose old content, as directories, is still in the journal."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"filler  " * 128)
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def by_pages(judged: Judged) -> Judged:
    """The kernel tells of holes in reserved space by pages of its cache, not by blocks."""
    ranges: list[tuple[int, int]] = []
    for offset, length in judged.data:
        start, end = offset // 4096 * 4096, min(-(-(offset + length) // 4096) * 4096, judged.entry.size)
        if ranges and sum(ranges[-1]) >= start:
            start = ranges.pop()[0]
        ranges.append((start, end - start))
    return replace(judged, data=tuple(ranges))


def equal(found: dict[bytes, Judged], shown: dict[bytes, Judged]) -> None:
    told = differences(
        {path: by_pages(judged) for path, judged in found.items()},
        {path: by_pages(judged) for path, judged in shown.items()},
    )
    assert told == [], f"{len(told)} differ, first {told[:3]}"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("-t", "ext4", "-b", "4096"), id="ext4"),
        pytest.param(("-t", "ext4", "-O", "inline_data,^64bit"), id="inline data"),
        pytest.param(("-t", "ext4", "-b", "1024", "-O", "ea_inode,^metadata_csum"), id="1 KiB blocks"),
        pytest.param(("-t", "ext3"), id="ext3"),
        pytest.param(("-t", "ext2", "-I", "256"), id="ext2"),
    ],
)
def test_the_reader_sees_what_the_kernel_shows(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = tmp_path / "image"
    make(image, "-N", "30000", *options)
    with mounted(image, tmp_path / "mount") as root:
        write_everything(root, 20_000 if "4096" in options else 3000)
        if "ea_inode,^metadata_csum" in options:
            os.setxattr(root / "large", "user.huge", os.urandom(30_000))
    with mounted(image, tmp_path / "mount", "loop,ro") as root:
        shown = read_mounted(root)
    equal(read_filesystem(image), shown)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("-t", "ext4", "-b", "4096"), id="ext4"),
        pytest.param(("-t", "ext4", "-O", "^metadata_csum,^64bit"), id="no checksums"),
        pytest.param(("-t", "ext4", "-b", "1024", "-J", "size=4"), id="a journal that wraps"),
        pytest.param(("-t", "ext3"), id="ext3"),
    ],
)
@pytest.mark.parametrize("mode", ["data=ordered", "data=journal"])
def test_a_dirty_journal_is_replayed_as_the_kernel_does(tmp_path: Path, options: tuple[str, ...], mode: str) -> None:
    image, copy, again = tmp_path / "image", tmp_path / "copy", tmp_path / "again"
    make(image, "-N", "4000", *options, size="32M")
    chance = random.Random(3)
    with mounted(image, tmp_path / "mount", f"loop,{mode},commit=300") as root:
        for turn in range(6):
            directory = root / f"turn {turn}"
            directory.mkdir()
            for number in range(150):
                (directory / f"{number}").write_bytes(chance.randbytes(chance.randrange(9000)))
            # The start of a block that the journal must escape.
            (directory / "escaped").write_bytes(b"\xc0\x3b\x39\x98" * 3000)
            if turn:
                # Blocks of a directory that is gone are revoked, and used again for data.
                shutil.rmtree(root / f"turn {turn - 1}")
            handle = os.open(directory, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        fill(root / "filler")
        # No sync: it would write everything to its place and leave the journal empty.
        shutil.copyfile(image, copy)
    with Ext4Image(copy) as reader:
        assert reader.superblock.needs_recovery
        assert reader.replayed_blocks > 0
    found = read_filesystem(copy)
    shutil.copyfile(copy, again)
    with mounted(again, tmp_path / "mount") as root:
        shown = read_mounted(root)
    # Only the kernel's own first touch may differ; the reader changed nothing in the copy.
    equal(found, shown)
    assert b"turn 5/149" in found

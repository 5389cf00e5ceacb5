"""Filesystems of the ext4 writer, judged by this machine's kernel."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from image_builders.disk.ext4 import needed_bytes
from rehost.replication.manifest import Entry, table_of
from tests.support.ext4_images import Chunks, assert_clean, assert_holds, straddling_names, whole_blocks, write_image
from tests.support.ext4_judge import differences, entries_of_table, read_mounted
from tests.support.ext4_nasty import nasty_table

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
    pytest.mark.skipif("ext4" not in Path("/proc/filesystems").read_text(), reason="this kernel has no ext4"),
]

MIB = 1 << 20
ROOT = Entry(b"", 0o40755)


@contextmanager
def mounted(image: Path, options: str) -> Iterator[tuple[Path, str]]:
    """(mount point, loop device); unmounted and detached on every way out."""
    point = image.with_suffix(".mnt")
    point.mkdir(exist_ok=True)
    device = subprocess.run(
        ["losetup", "--find", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        subprocess.run(["mount", "-t", "ext4", "-o", options, device, point], check=True)
        try:
            yield point, device
        finally:
            subprocess.run(["umount", point], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_the_kernel_shows_every_entry_as_the_table_has_it(tmp_path: Path) -> None:
    files, chunks = nasty_table()
    expected = whole_blocks(entries_of_table(files, chunks))
    image = write_image(tmp_path / "image", 300 * MIB, files, chunks)
    before = image.read_bytes()
    with mounted(image, "ro,noatime") as (point, _):
        found = whole_blocks(read_mounted(point))
        changed = {
            path: os.lstat(os.path.join(os.fsencode(point), path)).st_ctime_ns for path in files["path"].to_pylist()
        }
    # The kernel does not tell of flags on what is neither file nor directory, and the table has none there.
    assert differences(expected, found) == []
    assert changed == dict(zip(files["path"].to_pylist(), files["ctime_ns"].to_pylist(), strict=True))
    assert image.read_bytes() == before


def test_the_kernel_finds_adds_and_removes_names_in_hashed_directories(tmp_path: Path) -> None:
    count = 30_000
    names = [b"%d" % number * (1 + number % 7) for number in range(count)]
    odd = [bytes([200 + number % 50, 128 + number // 50, 255]) + b"\xe9" * (number % 200) for number in range(2_000)]
    entries = [ROOT, Entry(b"d", 0o40755), *(Entry(b"d/" + name, 0o100644) for name in {*names, *odd})]
    files = table_of(entries)
    image = write_image(tmp_path / "image", 1024 * MIB, files, Chunks())
    assert_clean(image)
    with mounted(image, "rw") as (point, _):
        folder = os.fsencode(point / "d")
        # A look-up goes by the hash: a wrong one is not found, though a listing shows it.
        for name in (*names, *odd):
            os.lstat(folder + b"/" + name)
        for number in range(20_000):
            os.close(os.open(folder + b"/new \xf0 %d" % number, os.O_CREAT | os.O_EXCL))
        for name in {*names[:14_000], *odd[:1_000]}:
            os.unlink(folder + b"/" + name)
        left = {*names, *odd} - {*names[:14_000], *odd[:1_000]} | {b"new \xf0 %d" % n for n in range(20_000)}
        assert set(os.listdir(folder)) == left
    assert_clean(image)


def test_the_kernel_finds_names_of_one_hash_in_two_leaves(tmp_path: Path) -> None:
    names, one, two = straddling_names()
    entries = [ROOT, Entry(b"d", 0o40755), *(Entry(b"d/" + name, 0o100644) for name in names)]
    image = write_image(tmp_path / "image", 64 * MIB, table_of(entries), Chunks())
    with mounted(image, "ro") as (point, _):
        for name in (one, two, *names):
            os.lstat(os.fsencode(point / "d") + b"/" + name)


def test_a_directory_whose_index_has_two_levels_takes_new_names(tmp_path: Path) -> None:
    paths = [Entry(b"d/" + b"%0200d" % number, 0o100644) for number in range(12_000)]
    image = write_image(tmp_path / "image", 512 * MIB, table_of([ROOT, Entry(b"d", 0o40755), *paths]), Chunks())
    shown = subprocess.run(["debugfs", "-R", "htree_dump /d", image], capture_output=True, text=True, check=True)
    assert "Indirect levels: 1" in shown.stdout
    with mounted(image, "rw") as (point, _):
        for entry in paths:
            os.lstat(os.path.join(os.fsencode(point), entry.path))
        for number in range(12_000, 20_000):
            (point / "d" / f"{number:0200d}").touch()
    assert_clean(image)


def test_a_mounted_filesystem_can_be_used_and_stays_sound(tmp_path: Path) -> None:
    files, chunks = nasty_table(flags=False)
    image = write_image(tmp_path / "image", needed_bytes(files) + 40 * MIB, files, chunks)
    with mounted(image, "rw") as (point, _):
        shutil.rmtree(point / "names")
        shutil.rmtree(point / "content")
        (point / "a" / "new").write_bytes(os.urandom(20 * MIB))
        os.setxattr(point / "a" / "new", "user.x", b"x" * 2000)
        os.setxattr(point / "attributes" / "many", "user.001", b"changed")
        os.removexattr(point / "attributes" / "all", "user.comment")
        os.link(point / "hard" / "a", point / "hard" / "fourth")
        for number in range(500):
            (point / "empty" / f"sub {number}").mkdir()
    assert_clean(image)


def _may_resize() -> bool:
    """CAP_SYS_RESOURCE, which the kernel asks for and which root has not got in every container."""
    effective = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    return bool(int(effective.split()[1], 16) >> 24 & 1)


@pytest.mark.skipif(not _may_resize(), reason="growing on-line needs CAP_SYS_RESOURCE")
def test_it_grows_while_it_is_mounted(tmp_path: Path) -> None:
    files, chunks = nasty_table(flags=False)
    image = write_image(tmp_path / "image", 200 * MIB, files, chunks)
    expected = whole_blocks(entries_of_table(files, chunks))
    with mounted(image, "rw,noatime") as (point, device):
        # Past 16 GiB the descriptors need blocks of the reserve.
        for size in (3 << 30, 40 << 30):
            os.truncate(image, size)
            subprocess.run(["losetup", "--set-capacity", device], check=True)
            subprocess.run(["resize2fs", device], check=True, capture_output=True)
            (point / f"after {size}").write_bytes(os.urandom(1 << 20))
        blocks = os.statvfs(point).f_blocks * 4096
        assert blocks > 38 << 30
    assert_clean(image)
    with mounted(image, "ro,noatime") as (point, _):
        found = whole_blocks(read_mounted(point))
    new = [path for path in found if path.startswith(b"after")]
    assert len(new) == 2
    # Writing the new files changed the root's times.
    assert differences(expected, found, ignore=[*new, b""]) == []


def test_the_journal_is_replayed_after_a_crash(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image", 256 * MIB, table_of([ROOT]), Chunks())
    crashed = tmp_path / "crashed"
    with mounted(image, "rw,commit=1000") as (point, device):
        for number in range(2000):
            (point / f"file {number}").write_bytes(b"%d" % number)
        # fsync puts the names into the journal; nothing has brought them to their places yet.
        with (point / "last").open("wb") as file:
            os.fsync(file.fileno())
        folder = os.open(point, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        Path(crashed).write_bytes(Path(device).read_bytes())
    shown = subprocess.run(["dumpe2fs", "-h", crashed], capture_output=True, text=True, check=True).stdout
    assert "needs_recovery" in shown
    with mounted(crashed, "rw") as (point, _):
        assert (point / "last").exists()
        assert sum(1 for name in os.listdir(point) if name.startswith("file")) == 2000
    assert_clean(crashed)


def test_files_of_many_extents_are_read_back_by_the_kernel(tmp_path: Path) -> None:
    chunks = Chunks()
    pieces = [(8192 * number, b"%07d" % number) for number in range(4 * 340 + 700)]
    deep = chunks.file(b"deep", *pieces)
    long = chunks.file(b"long", (0, os.urandom(150 * MIB)))
    files = table_of([ROOT, deep, long, replace(deep, path=b"deep too")])
    image = write_image(tmp_path / "image", needed_bytes(files), files, chunks)
    assert_clean(image)
    assert_holds(image, files, chunks)
    with mounted(image, "ro,noatime") as (point, _):
        assert (
            differences(
                whole_blocks(entries_of_table(files, chunks)), whole_blocks(read_mounted(point)), ignore=[b"lost+found"]
            )
            == []
        )
        assert stat.S_ISDIR((point / "lost+found").stat().st_mode)
    told = subprocess.run(["debugfs", "-R", "dump_extents deep", image], capture_output=True, text=True, check=True)
    assert " 0/ 2" in told.stdout

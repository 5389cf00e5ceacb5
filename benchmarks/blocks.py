"""Block mode over SSH on loopback, beside restic and partclone on the same raw disk and `cat` of the blocks in use."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, compare
from benchmarks.one_pass import Taken
from benchmarks.source import HOUR, Restic, source, unpacked
from rehost.run import run

_LEVEL = 1  # on a fast wire a higher one costs more time than it saves
_MIB, _GIB = 1 << 20, 1 << 30
_RESIDENT = 300 << 20
_CACHES = Path("/proc/sys/vm/drop_caches")


def raw_disk(tar: Path, scratch: Path) -> Iterator[Row]:
    """A disk of 3 GiB with a Debian tree on it: first copy, and nothing changed. `scratch` is an empty folder."""
    tree, disk = unpacked(tar, scratch / "tree"), scratch / "disk.raw"
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(disk), "3g"], timeout=HOUR)
    shutil.rmtree(tree)
    restic, store, cloned = Restic(scratch), scratch / "store", scratch / "cloned"
    with source(scratch / "sshd") as served:
        first_id = ""

        def clean() -> None:
            for folder in (store, restic.repository, scratch / "restic-cache"):
                shutil.rmtree(folder, ignore_errors=True)
            cloned.unlink(missing_ok=True)
            restic.run("init")

        def first() -> float:
            nonlocal first_id
            taken = served.take(disk, store, mode="blocks", level=_LEVEL)
            first_id = taken.snapshot
            return taken.seconds

        def backup() -> None:
            restic.run("backup", str(disk))

        def clone() -> None:
            run(["partclone.ext4", "-q", "-c", "-F", "-s", str(disk), "-o", str(cloned)], timeout=HOUR)
            with cloned.open("rb") as written:
                os.fsync(written.fileno())

        yield compare("blocks: first copy over SSH", first, backup, "restic backup of the raw disk", 0.9, clean)
        yield compare("blocks: first copy over SSH", first, clone, "partclone.ext4, local", 0.8, clean)
        first()

        def again() -> float:
            return served.take(disk, store, mode="blocks", level=_LEVEL, parent=first_id).seconds

        used = _blocks_in_use(disk)

        def cat() -> None:
            with disk.open("rb", buffering=0) as opened:
                for start, length in used:
                    while length:
                        read = len(os.pread(opened.fileno(), min(length, _MIB), start))
                        start, length = start + read, length - read

        yield compare("blocks: nothing changed over SSH", again, cat, "reading the blocks in use", 1.3, _drop_caches)


def sparse_disk(scratch: Path) -> Iterator[Row]:
    """A disk of 1 TiB with 1 GiB in use, beside one of 4 GiB with the same. `scratch` is an empty folder."""
    disks = []
    for name, size in (("large", 1 << 40), ("small", 4 * _GIB)):
        disk = scratch / f"{name}.raw"
        tree = scratch / "content"
        tree.mkdir(exist_ok=True)
        content = tree / "file"
        if not content.exists():
            with content.open("wb") as file:
                for number in range(_GIB // 65_536):
                    file.write(number.to_bytes(8, "big") * 8192)
        run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(tree), str(disk), f"{size // 1024}k"], timeout=HOUR)
        disks.append(disk)
    resident = []
    with source(scratch / "sshd") as served:

        def take(disk: Path) -> float:
            taken = served.take(disk, scratch / "store", mode="blocks", level=_LEVEL)
            resident.append(taken.resident)
            return taken.seconds

        def clean() -> None:
            shutil.rmtree(scratch / "store", ignore_errors=True)

        yield compare(
            "blocks: 1 TiB with 1 GiB in use",
            lambda: take(disks[0]),
            lambda: take(disks[1]),
            "4 GiB with 1 GiB in use",
            2.0,
            clean,
        )
        yield Row("blocks: 1 TiB, worker", max(resident) / 1e6, _RESIDENT / 1e6, "300 MiB", 1.0, unit="MB")
        yield Row("blocks: 1 TiB, agent", served.agent_resident / 1e6, _RESIDENT / 1e6, "300 MiB", 1.0, unit="MB")


def tracked_disk(scratch: Path) -> Iterator[Row]:
    """A disk of 20 GiB half full of which 1 % is written between passes: with tracking beside without."""
    disk, point, job = scratch / "disk.raw", scratch / "mounted", "j-" + os.urandom(10).hex()
    run(["mke2fs", "-q", "-F", "-t", "ext4", str(disk), "20g"], timeout=HOUR)
    loop = Path(run(["losetup", "--show", "-f", str(disk)], timeout=60).stdout.decode().strip())
    point.mkdir()
    draw = random.Random(1)
    try:
        run(["mount", str(loop), str(point)], timeout=60)
        try:
            with (point / "content").open("wb") as file:
                for number in range(10 * _GIB // 65_536):
                    file.write(number.to_bytes(8, "big") * 8192)

            def write_some() -> None:
                """One per cent of what is in use, in pieces of 4 KiB at places of their own."""
                with (point / "content").open("r+b") as file:
                    for _ in range(10 * _GIB // 65_536 // 100):
                        file.seek(draw.randrange(10 * _GIB // 65_536) * 65_536)
                        file.write(draw.randbytes(4096))
                    os.fsync(file.fileno())
                os.sync()
                _drop_caches()

            with source(scratch / "sshd") as served:
                parent: str | None = None

                def take(tracker: str | None) -> Taken:
                    store = scratch / "store"
                    return served.take(loop, store, mode="blocks", level=_LEVEL, tracker=tracker, parent=parent)

                def tracked() -> float:
                    nonlocal parent
                    taken = take(job)
                    parent = taken.snapshot
                    return taken.seconds

                tracked()
                try:
                    yield compare(
                        "blocks: 1 % written, tracked",
                        tracked,
                        lambda: take(None).seconds,
                        "without tracking",
                        0.1,
                        write_some,
                    )
                finally:
                    served.remove_tracker(job)
        finally:
            run(["umount", str(point)], timeout=600)
    finally:
        run(["losetup", "-d", str(loop)], timeout=60)


def _blocks_in_use(disk: Path) -> list[tuple[int, int]]:
    """Start and length of what is data in the file: what `mke2fs -d` wrote."""
    found = []
    with disk.open("rb") as opened:
        size, at = opened.seek(0, os.SEEK_END), 0
        while at < size:
            try:
                start = os.lseek(opened.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(opened.fileno(), start, os.SEEK_HOLE)
            found.append((start, at - start))
    return found


def _drop_caches() -> None:
    os.sync()
    _CACHES.write_text("3")

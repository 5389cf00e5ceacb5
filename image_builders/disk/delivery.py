"""From a raw disk to the files of an image: the formats, their digests, and all of it whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from image_builders.disk import formats
from image_builders.disk.record import DiskFile
from rehost.disk_formats import KINDS, DiskFormat
from rehost.errors import BuildConversionDiffers, StoreNoSpace
from rehost.progress import Progress

# Names that do not depend on what the image is called: a name from outside never becomes a path.
RECORD = "image.json"
DIFF = "fixups.diff"
SCRATCH = "scratch.partial"
_ENDINGS = "|".join(re.escape(kind.ending) for kind in KINDS.values())
_DISK_FILE = re.compile(rf"disk-[0-9]{{1,5}}\.(?:{_ENDINGS})(?:\.partial)?")


class Meter:
    """One progress over all steps: the content once, then for each format once for writing and once for hashing."""

    def __init__(self, progress: Progress, content: int, wanted: tuple[DiskFormat, ...]) -> None:
        self._progress = progress
        self._total = max(content * (1 + 2 * len(wanted)), 1)
        self._base = 0
        self._told = 0

    def step(self, part: float, weight: int, note: str) -> None:
        done = self._base + int(min(max(part, 0.0), 1.0) * weight)
        if done > self._told:
            self._told = min(done, self._total)
            self._progress(self._told, self._total, note)

    def end_step(self, weight: int) -> None:
        self._base += weight

    def finish(self) -> None:
        self._progress(self._total, self._total, "finished")


def deliver(
    raw: Path, index: int, size_bytes: int, wanted: tuple[DiskFormat, ...], directory: Path, meter: Meter, content: int
) -> tuple[DiskFile, ...]:
    """Make each format from the raw disk `index`, check it, hash it; the raw disk itself last, by a rename.

    `content` is what the meter counts for this disk, in bytes. Raises what `formats` does.
    """
    files: list[DiskFile] = []
    for name in sorted(wanted, key=lambda n: n == "raw"):
        final = directory / f"disk-{index}.{KINDS[name].ending}"
        if name == "raw":
            partial = raw
        else:
            partial = final.with_name(f"{final.name}.partial")
            note = f"converting to {name}"
            formats.convert(raw, partial, name, lambda part, note=note: meter.step(part, content, note))  # type: ignore[misc]
        meter.end_step(content)
        size = partial.stat().st_size
        hashed = 0

        def count(step: int, name: str = name, size: int = size) -> None:
            nonlocal hashed
            hashed += step
            meter.step(hashed / size, content, f"SHA-256 of {name}")

        digest = formats.sha256_of(partial, count)
        virtual = formats.virtual_size(partial, name)
        if virtual != size_bytes:
            raise BuildConversionDiffers(format=name, reason=f"it holds a disk of {virtual} bytes, not {size_bytes}")
        _sync(partial)
        partial.rename(final)
        meter.end_step(content)
        files.append(
            DiskFile(
                index=index,
                role="system" if index == 0 else "data",
                format=name,
                virtual_size=virtual,
                file_size=size,
                sha256=digest,
                location=str(final),
            )
        )
    raw.unlink(missing_ok=True)
    return tuple(sorted(files, key=lambda file: wanted.index(file.format)))


def clear(directory: Path) -> None:
    """Remove what an earlier try left: the record first, so that no folder speaks of files that are gone."""
    for name in (RECORD, DIFF):
        (directory / name).unlink(missing_ok=True)
        (directory / f"{name}.partial").unlink(missing_ok=True)
    for path in directory.glob("disk-*"):
        if _DISK_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory / SCRATCH)


def raw_partial(directory: Path, index: int) -> Path:
    """Where the raw disk is put together."""
    return directory / f"disk-{index}.raw.partial"


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file that is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def whole_or_nothing(directory: Path) -> Iterator[None]:
    """What was not finished is removed; a full disk is told of as what it is."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            clear(directory)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreNoSpace(path=directory) from error
        raise

"""Files of a finished disk in each of its formats; and the SHA-256 of files that are mostly holes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import selectors
import time
from collections.abc import Callable
from pathlib import Path

from rehost.disk_formats import KINDS, DiskFormat
from rehost.errors import BuildConversionDiffers, ProgramFailed, ProgramTimeout
from rehost.run import run, spawn

_PIECE_BYTES = 4 << 20
_ZEROS = memoryview(bytes(_PIECE_BYTES))
_PROGRESS = re.compile(rb"\((\d+\.\d+)/100%\)")
_TIMEOUT = 6 * 3600.0
_SILENT_SECONDS = 1800.0  # qemu-img says how far it is; without a word for so long it hangs


def qemu_format(name: DiskFormat) -> str:
    """The name that QEMU's programs have for a format."""
    return KINDS[name].driver


def convert(raw: Path, target: Path, wanted: DiskFormat, progress: Callable[[float], None]) -> None:
    """Write `target` in the wanted format from a raw disk, and compare the two.

    `progress` is given the part that is done, 0 to 1. Raises ProgramFailed, ProgramTimeout, BuildConversionDiffers.
    """
    kind = KINDS[wanted]
    argv = ["qemu-img", "convert", "-p", "-f", "raw", "-O", kind.driver]
    argv += ["-c"] if kind.compressed else []
    argv += ["-o", ",".join(kind.options)] if kind.options else []
    _follow([*argv, str(raw), str(target)], lambda part: progress(part * 0.8))
    compared = run(
        ["qemu-img", "compare", "-f", "raw", "-F", kind.driver, str(raw), str(target)], timeout=_TIMEOUT, check=False
    )
    if compared.status != 0:
        reason = (compared.stdout.decode("utf-8", "replace") + compared.stderr).strip()[-500:]
        raise BuildConversionDiffers(format=wanted, reason=reason)
    progress(1.0)


def _follow(argv: list[str], progress: Callable[[float], None]) -> None:
    """Run a qemu-img that tells of its progress on standard output."""
    ends = time.monotonic() + _TIMEOUT
    with spawn(argv) as process, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        held = b""
        while selector.select(timeout=_SILENT_SECONDS):
            piece = os.read(process.stdout.fileno(), 65_536)
            if not piece or time.monotonic() > ends:
                break
            held = (held + piece)[-256:]
            if told := _PROGRESS.findall(held):
                progress(min(float(told[-1]) / 100, 1.0))
        else:
            raise ProgramTimeout(program=argv[0], seconds=_SILENT_SECONDS)
        status = process.wait(max(ends - time.monotonic(), 1.0))
        if status != 0:
            raise ProgramFailed(program=argv[0], status=status, stderr=process.stderr().strip()[-2000:])


def virtual_size(path: Path, wanted: DiskFormat) -> int:
    """The size of the disk inside a file, as QEMU reads it."""
    told = run(["qemu-img", "info", "--output=json", "-f", qemu_format(wanted), str(path)], timeout=120.0)
    return int(json.loads(told.stdout)["virtual-size"])


def sha256_of(path: Path, progress: Callable[[int], None]) -> str:
    """The SHA-256 of a file. Holes are hashed without being read. `progress` is given bytes as they are done."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        buffer = bytearray(_PIECE_BYTES)
        view = memoryview(buffer)
        at = 0
        while at < size:
            data = _seek(file.fileno(), at, os.SEEK_DATA, size)
            while at < data:
                step = min(data - at, _PIECE_BYTES)
                digest.update(_ZEROS[:step])
                at += step
                progress(step)
            hole = _seek(file.fileno(), at, os.SEEK_HOLE, size) if at < size else size
            file.seek(at)
            while at < hole:
                count = file.readinto(view[: min(hole - at, _PIECE_BYTES)])
                if not count:
                    raise OSError(errno.EIO, "the file became shorter while it was read", str(path))
                digest.update(view[:count])
                at += count
                progress(count)
    return digest.hexdigest()


def _seek(descriptor: int, at: int, whence: int, size: int) -> int:
    try:
        return min(os.lseek(descriptor, at, whence), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data up to the end
            return size
        raise

"""Disk images as hypervisors leave them, opened as raw bytes.

Raw images are read where they lie. The others are converted by `qemu-img` into a private scratch file that is
removed at the end. An image that names another file (a backing file, an external data file, a descriptor with
extents elsewhere) is refused before any program opens it: such a name could be any file of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rehost.errors import SourceImageDamaged, SourceUnsupported
from rehost.run import run
from rehost.settings import settings

_INFO_SECONDS = 60.0
_CONVERT_BYTES_PER_SECOND = 5_000_000  # slower than any disk that is not broken
_VIRTUAL_BYTES = 64 << 40
_QCOW2_EXTERNAL_DATA = 0x4  # incompatible feature bit 2
_NAMES_ANOTHER_FILE = re.compile(
    r'"(?:(?:full-)?backing-filename|backing-image|data-file|data-file-raw)"\s*:\s*(?!false|null)'
)


@dataclass(frozen=True)
class RawImage:
    """One disk's bytes, open for reading."""

    path: Path  # of the raw bytes: the image itself, or the scratch file
    shown: str  # the image as the user named it, for messages
    descriptor: int
    size_bytes: int

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset`, fewer at the end of the image."""
        return os.pread(self.descriptor, length, offset) if offset >= 0 else b""


@contextlib.contextmanager
def open_image(path: Path) -> Iterator[RawImage]:
    """Open a disk image of any format that is read; a converted copy goes on the way out.

    Raises SourceImageDamaged, SourceUnsupported, ProgramNotFound, ProgramFailed, ProgramTimeout.
    """
    with contextlib.ExitStack() as stack:
        descriptor = _open(path)
        stack.callback(os.close, descriptor)
        kind = _format(descriptor, str(path))
        if kind == "raw":
            yield RawImage(path, str(path), descriptor, os.lseek(descriptor, 0, os.SEEK_END))
            return
        scratch = settings().scratch_path
        scratch.mkdir(parents=True, exist_ok=True)
        directory = stack.enter_context(TemporaryDirectory(prefix="disk-", dir=scratch))
        raw = Path(directory) / "disk.raw"
        _convert(path.resolve(), kind, raw)
        converted = os.open(raw, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, converted)
        yield RawImage(raw, str(path), converted, os.lseek(converted, 0, os.SEEK_END))


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SourceUnsupported(source=str(path), reason=f"it cannot be opened: {error.strerror}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(descriptor)
        raise SourceUnsupported(source=str(path), reason="it is neither a file nor a block device")
    return descriptor


def _format(descriptor: int, source: str) -> str:
    """The format by its magic numbers, as qemu-img names it. Raises where the image names another file."""
    head = os.pread(descriptor, 4096, 0)
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if head[:4] == b"QFI\xfb":
        return _qcow2(head, source)
    if head[:4] == b"KDMV":
        if len(head) < 20 or not struct.unpack_from("<Q", head, 12)[0]:
            raise _other_file(source, "its extents lie in other files")
        return "vmdk"
    if head[:4] == b"COWD" or head.lstrip()[:21] == b"# Disk DescriptorFile":
        raise _other_file(source, "it is a VMDK descriptor: name its -flat.vmdk file instead, which is a raw image")
    if head[:8] == b"vhdxfile":
        return "vhdx"
    if head[:8] == b"conectix" or (size >= 512 and os.pread(descriptor, 8, size - 512) == b"conectix"):
        return "vpc"
    if head[0x40:0x44] == b"\x7f\x10\xda\xbe":
        return "vdi"
    if head[:4] == b"QED\0":
        raise SourceUnsupported(source=source, reason="QED images are not read: convert it to qcow2 first")
    return "raw"


def _qcow2(head: bytes, source: str) -> str:
    if len(head) < 72:
        raise SourceImageDamaged(source=source, reason="its qcow2 header is cut off")
    version, backing = struct.unpack_from(">IQ", head, 4)
    if version not in (2, 3):
        raise SourceUnsupported(source=source, reason=f"version {version} of qcow is not read")
    if backing:
        raise _other_file(source, "it has a backing file")
    if version == 3 and struct.unpack_from(">Q", head, 72)[0] & _QCOW2_EXTERNAL_DATA:
        raise _other_file(source, "its data lies in another file")
    return "qcow2"


def _other_file(source: str, reason: str) -> SourceUnsupported:
    return SourceUnsupported(
        source=source, reason=f"{reason}; make one whole image of it (`qemu-img convert`) where you trust its origin"
    )


def _convert(path: Path, kind: str, raw: Path) -> None:
    # An absolute path begins with a slash, so that qemu-img cannot take it for a protocol or for JSON.
    told = run(["qemu-img", "info", "--output=json", "-f", kind, str(path)], timeout=_INFO_SECONDS).stdout
    if _NAMES_ANOTHER_FILE.search(told.decode("utf-8", "replace")):
        raise _other_file(str(path), "it names another file")
    facts = json.loads(told)
    size = facts.get("virtual-size")
    if facts.get("format") != kind or not isinstance(size, int) or not 0 < size <= _VIRTUAL_BYTES:
        raise SourceImageDamaged(source=str(path), reason=f"qemu-img tells of a disk of {size} bytes")
    for extent in facts.get("format-specific", {}).get("data", {}).get("extents", []):
        if Path(str(extent.get("filename"))).resolve() != path:
            raise _other_file(str(path), "its extents lie in other files")
    limit = 600.0 + size / _CONVERT_BYTES_PER_SECOND
    run(["qemu-img", "convert", "-f", kind, "-O", "raw", str(path), str(raw)], timeout=limit)

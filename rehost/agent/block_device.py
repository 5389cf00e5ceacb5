"""Reads a device past the page cache, and keeps lists of its blocks.

What a mounted filesystem writes goes by a cache of its own; that of the block device knows nothing of it. So a device
is read with O_DIRECT, into memory that begins at a page. Files that refuse it (tmpfs) are read as files are.
"""

import errno
import mmap
import os
import stat
from array import array
from typing import Iterable, Iterator, Tuple

BLOCK_BYTES = 65536  # of an index of blocks; all offsets of blocks count from the start of the area
ALIGNMENT = 4096  # no device has larger sectors
_WINDOW_BYTES = 65536

Range = Tuple[int, int]
"""First byte and the one behind the last, counted from the start of an area."""


class Area:
    """A stretch of a device: a partition, a partition table, a gap."""

    def __init__(self, path: bytes, offset: int, size: int, allow_file: bool = False) -> None:
        self.path = path
        self.offset = offset  # bytes from the start of the device
        self.size = size
        self.allow_file = allow_file

    @property
    def blocks(self) -> int:
        """How many blocks it has; the last one may be shorter."""
        return (self.size + BLOCK_BYTES - 1) // BLOCK_BYTES


class Device:
    """An area, open for reading by one thread."""

    def __init__(self, area: Area, most: int = 1 << 20) -> None:
        self.area = area
        self.direct = True
        self._most = most
        self._buffer = mmap.mmap(-1, (most + 3 * ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)
        self._view = memoryview(self._buffer)
        self.fd = _open(area, os.O_DIRECT)
        if self.fd < 0:
            self.direct = False
            self.fd = _open(area, 0)
        try:
            self.is_file = _checked(self.fd, area)
        except OSError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Let the device go."""
        os.close(self.fd)

    def __enter__(self) -> "Device":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def view(self, offset: int, length: int) -> memoryview:
        """The bytes from `offset` of the area, good until the next reading; at most the `most` of this Device.

        Raises OSError, also where the device ends before them.
        """
        if length > self._most or offset < 0 or offset + length > self.area.size:
            raise ValueError("a reading beyond the area, or too long")
        first = self.area.offset + offset
        start = first // ALIGNMENT * ALIGNMENT
        stop = (first + length + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        at, need = 0, first + length - start
        while at < need:
            os.lseek(self.fd, start + at, os.SEEK_SET)
            try:
                got = os.readv(self.fd, [self._view[at : stop - start]])
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self._without_direct()
                continue
            if not got:
                raise OSError(errno.EIO, "the device ends before its size")
            at += got
            if at < need and at % ALIGNMENT:  # an unaligned end of what was there at once: the rest from its page on
                at = at // ALIGNMENT * ALIGNMENT
                if got < ALIGNMENT:
                    self._without_direct()
        if not self.direct:
            os.posix_fadvise(self.fd, start, stop - start, os.POSIX_FADV_DONTNEED)
        return self._view[first - start : first - start + length]

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` of the area, of any length."""
        pieces = []
        while length:
            piece = min(length, self._most)
            pieces.append(bytes(self.view(offset, piece)))
            offset, length = offset + piece, length - piece
        return b"".join(pieces)

    def _without_direct(self) -> None:
        """Go on through the cache, where the file refuses what goes past it."""
        os.close(self.fd)
        self.direct = False
        self.fd = _open(self.area, 0)

    def data(self) -> Iterator[Range]:
        """What of the area is no hole, where the device is a file that knows; else all of it."""
        at, end = self.area.offset, self.area.offset + self.area.size
        while self.is_file and at < end:
            try:
                start = os.lseek(self.fd, at, os.SEEK_DATA)
                stop = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno == errno.ENXIO:  # no data from here on
                    return
                break
            if start >= end:
                return
            yield start - self.area.offset, stop - self.area.offset
            at = max(stop, at + 1)
        if at < end:
            yield at - self.area.offset, self.area.size


def _open(area: Area, more: int) -> int:
    try:
        return os.open(area.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | more)
    except OSError as error:
        if more and error.errno == errno.EINVAL:
            return -1
        raise


def _checked(fd: int, area: Area) -> bool:
    """Whether it is a file. Raises OSError where it is neither that nor a device, or shorter than the area."""
    mode = os.fstat(fd).st_mode
    if not stat.S_ISBLK(mode) and not (area.allow_file and stat.S_ISREG(mode)):
        raise OSError(errno.ENOTBLK, "it is no block device")
    if os.lseek(fd, 0, os.SEEK_END) < area.offset + area.size:
        raise OSError(errno.EINVAL, "the device is smaller than it was")
    return stat.S_ISREG(mode)


class Window:
    """Reads small pieces of metadata that follow each other without a reading each. What it gives may be old."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.size = device.area.size
        self._start = 0
        self._held = b""

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` of the area; ValueError where they are not all inside."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError("metadata beyond the end")
        at = offset - self._start
        if not 0 <= at <= len(self._held) - length:
            ahead = min(max(length, _WINDOW_BYTES), self.size - offset)
            self._start, self._held, at = offset, self._device.read(offset, ahead), 0
        return self._held[at : at + length]

    def clipped(self, offset: int, length: int) -> bytes:
        """The same, fewer bytes at the end."""
        return self.read(offset, max(0, min(length, self.size - offset))) if offset < self.size else b""


def joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """The same bytes in ranges that are apart from each other; their starts ascend as they come."""
    start = end = 0
    for first, stop in ranges:
        if first < start:
            raise ValueError("a range that is out of order")
        if first > end:
            if end > start:
                yield start, end
            start = first
        end = max(end, stop)
    if end > start:
        yield start, end


def common(ranges: Iterable[Range], others: Iterable[Range]) -> Iterator[Range]:
    """What is in both; each ascending and apart."""
    rest = iter(others)
    other = next(rest, None)
    for start, stop in ranges:
        while other is not None and other[0] < stop:
            if other[1] > start:
                yield max(start, other[0]), min(stop, other[1])
                if other[1] > stop:
                    break
            other = next(rest, None)


def between(ranges: Iterable[Range], size: int) -> Iterator[Range]:
    """What of so many bytes is in none of these ranges, which are ascending and apart."""
    at = 0
    for start, stop in ranges:
        if start > at:
            yield at, start
        at = stop
    if at < size:
        yield at, size


def block_runs(ranges: Iterable[Range], size: int) -> "array[int]":
    """(first block, number of blocks) one after the other, of the blocks that these ascending ranges touch.

    Raises ValueError where a range is not inside, or begins before the one before it.
    """
    runs = array("Q")
    first = end = before = 0
    for start, stop in ranges:
        if not before <= start <= stop <= size:
            raise ValueError("a range that is out of order or beyond the end")
        before = start
        if start == stop:
            continue
        low, high = start // BLOCK_BYTES, (stop + BLOCK_BYTES - 1) // BLOCK_BYTES
        if low > end:
            if end > first:
                runs.extend((first, end - first))
            first = low
        end = max(end, high)
    if end > first:
        runs.extend((first, end - first))
    return runs

"""What is written to whole disks, from the kernel's own block tracepoints, in a trace instance of its own.

A bit is set when a write **completes** (`block_rq_complete`), before the writer is told so. Hence: a write that was
acknowledged before `take` began is in that take or in an earlier one; and content that lands on a disk after a
block was read completes after the take before that reading, so the next take names the block again. Nothing needs to
be known about what is in flight.

Requests always name the whole disk and sectors from its start, whatever partition, LVM volume or array they came
through. A request that merges discards tells one range for many, so discards are also taken where they are queued
(`block_bio_queue`), and named again whenever one completes, until none is under way. Only disks that are driven by
requests are taken: device mapper, md, zram and their like give no such event, and are refused.

The ring buffer's pages are read as the kernel lays them out: include/linux/ring_buffer.h,
Documentation/trace/ring-buffer-design; the places of the fields come from the `format` files.
"""

import os
import struct
import sys
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

BLOCK_BYTES = 65_536  # a bit stands for so much, or for a power of two times it on large disks
BITMAPS_BYTES = 2 << 20  # all bitmaps of one kind together; 1 TiB of disks at 64 KiB a bit
DISK_BYTES = 1 << 50
_BUFFERS_KIB = 16_384  # all ring buffers together
_BUFFER_KIB = (256, 4_096)  # least and most of one processor's
_DISCARD_SECONDS = 3600.0  # no discard takes longer; after a loss of events their balance may never come to zero
_PREFIX = "rehost-"
_MOUNTED = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_READS = ("R", "RA", "RS", "RM", "RSM", "RAM")  # what the kernel's filter leaves out: reading, and nothing else
_COMPLETE = "events/block/block_rq_complete/"
_QUEUE = "events/block/block_bio_queue/"
_BITS = tuple(1 << bit for bit in range(8))
# Takes the instance away when this process is gone, however it went; descriptor 0 ends with it.
_UNDERTAKER = """\
trap "" TERM HUP INT
read -r nothing
turn=0
while [ -d "$1" ] && [ $turn -lt 100 ]; do rmdir "$1" 2>/dev/null && exit; sleep 0.1; turn=$((turn + 1)); done
"""


class TracingUnavailable(Exception):
    """This machine, or one of its disks, cannot be traced; the message says why."""


class Disk(NamedTuple):
    """A whole disk, as the kernel knows it now."""

    name: str  # in /sys/block
    number: int  # major << 20 | minor
    size_bytes: int
    identity: str  # what tells it from another disk that took its place


class Bitmap:
    """One bit for each `block_bytes` of a disk, the lowest bit of the first byte first."""

    def __init__(self, size_bytes: int, block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self._sectors = size_bytes // 512
        self._shift = block_bytes.bit_length() - 10
        self.bits = bytearray((-(-size_bytes // block_bytes) + 7) // 8)

    def mark(self, sector: int, count: int) -> None:
        """Set the bits of `count` sectors of 512 bytes; what lies past the disk's end is passed over."""
        end = min(sector + count, self._sectors)
        if end <= sector:
            return
        first, last = sector >> self._shift, (end - 1) >> self._shift
        while first <= last and (first & 7 or last - first < 8):
            self.bits[first >> 3] |= _BITS[first & 7]
            first += 1
        whole = (last + 1 - first) >> 3
        if whole > 0:
            self.bits[first >> 3 : (first >> 3) + whole] = b"\xff" * whole
            for block in range(first + 8 * whole, last + 1):
                self.bits[block >> 3] |= _BITS[block & 7]

    def merge(self, other: bytes) -> None:
        """Set what is set there."""
        joined = int.from_bytes(self.bits, "little") | int.from_bytes(other, "little")
        self.bits[:] = joined.to_bytes(len(self.bits), "little")

    def take(self) -> bytes:
        """The bits; none is set afterwards."""
        taken, self.bits = bytes(self.bits), bytearray(len(self.bits))
        return taken


class _Discards:
    """The discards of one disk that may be under way."""

    def __init__(self) -> None:
        self.ranges = []  # type: List[Tuple[int, int]]
        self.sectors = 0  # queued less completed
        self.seen = 0.0  # when the last of either was heard of, by the monotonic clock


def disk_of(name: str) -> Disk:
    """A disk of /sys/block by its name. Raises TracingUnavailable where its writes cannot be followed exactly."""
    base = "/sys/block/" + name
    number, size = _line(base + "/dev"), _line(base + "/size")
    if "/" in name or name.startswith(".") or not number or not size:
        raise TracingUnavailable("%s is not a disk of this machine" % name)
    scheduler = _line(base + "/queue/scheduler")
    if not os.path.isdir(base + "/mq") and "[" not in scheduler:
        raise TracingUnavailable("%s is not driven by requests" % name)
    if _line(base + "/queue/dax") == "1":
        raise TracingUnavailable("%s can be written to as memory" % name)
    if _line(base + "/queue/zoned") not in ("", "none"):
        raise TracingUnavailable("%s is a zoned disk" % name)
    major, _, minor = number.partition(":")
    told = [number, size]
    told += [_line(base + "/" + place) for place in ("diskseq", "serial", "wwid", "device/serial", "device/wwid")]
    return Disk(name, int(major) << 20 | int(minor), int(size) * 512, " ".join(told))


def block_bytes_of(disks: List[Disk]) -> int:
    """How much a bit stands for, so that the bitmaps of these disks stay within their bound."""
    size = BLOCK_BYTES
    while sum(disk.size_bytes for disk in disks) > BITMAPS_BYTES * 8 * size:
        size *= 2
    return size


class BlockTracer:
    """Follows the writes to some disks from its making on. For one thread."""

    def __init__(self, names: List[str], buffer_kib: int = 0) -> None:
        """Raises TracingUnavailable; `buffer_kib` is of one processor, 0 for what suits."""
        self.disks = [disk_of(name) for name in names]
        if not self.disks or len(set(names)) != len(names):
            raise TracingUnavailable("there is no disk to trace")
        self.block_bytes = block_bytes_of(self.disks)
        self.bitmaps = [Bitmap(disk.size_bytes, self.block_bytes) for disk in self.disks]
        self._discards = [_Discards() for _ in self.disks]
        self._places = {disk.number: place for place, disk in enumerate(self.disks)}  # type: Dict[int, int]
        self._lost = None  # type: Optional[str]
        self._undertaker = self._thread_of_life = -1
        self._instance = -1
        self._pipes = []  # type: List[int]
        root = _tracefs()
        try:
            self._begin(root, buffer_kib)
        except OSError as error:
            self.close()
            raise TracingUnavailable("the kernel's tracing cannot be set up: %s" % error) from error
        except BaseException:
            self.close()
            raise
        finally:
            os.close(root)

    def _begin(self, root: int, buffer_kib: int) -> None:
        _remove_stale(root)
        name = "%s%d-%s" % (_PREFIX, os.getpid(), os.urandom(4).hex())
        os.mkdir("instances/" + name, 0o700, dir_fd=root)
        try:
            self._undertaker, self._thread_of_life = _undertaker(root, name)
            self._instance = os.open("instances/" + name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        except OSError:
            os.rmdir("instances/" + name, dir_fd=root)
            raise
        processors = [item for item in os.listdir(self._path("per_cpu")) if item.startswith("cpu")]
        size = buffer_kib or min(max(_BUFFERS_KIB // len(processors), _BUFFER_KIB[0]), _BUFFER_KIB[1])
        self._write("buffer_size_kb", str(size))
        self._write("options/overwrite", "0")
        for option in ("record-cmd", "record-tgid"):  # names of processes are of no use, and cost
            try:
                self._write("options/" + option, "0")
            except OSError:
                pass
        self._layout()
        disks = "(%s)" % " || ".join("dev == %d" % disk.number for disk in self.disks)
        self._write(_COMPLETE + "filter", disks + "".join(' && rwbs != "%s"' % told for told in _READS))
        self._write(_QUEUE + "filter", disks + ' && (rwbs ~ "*D*" || rwbs ~ "*E*")')
        self._stats = ["per_cpu/%s/stats" % item for item in processors]
        for item in processors:
            self._pipes.append(
                os.open(
                    "per_cpu/%s/trace_pipe_raw" % item,
                    os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC,
                    dir_fd=self._instance,
                )
            )
        self._missed = self._overruns()
        self._write(_QUEUE + "enable", "1")
        self._write(_COMPLETE + "enable", "1")

    def _layout(self) -> None:
        """How events lie in a page, and fields in an event."""
        head = _fields(self._read("events/header_page"))
        self._commit = struct.Struct("=Q" if head["commit"][1] == 8 else "=I")
        self._commit_at, self._data_at = head["commit"][0], head["data"][0]
        self._page = memoryview(bytearray(self._data_at + head["data"][1]))
        self._events = {}  # type: Dict[int, Tuple[struct.Struct, bool]]
        for event in (_COMPLETE, _QUEUE):
            text = self._read(event + "format")
            fields = _fields(text)
            layout, end = "=", 0
            for name, code in (("dev", "I"), ("sector", "Q"), ("nr_sector", "I"), ("rwbs", "s")):
                offset, size = fields[name]
                if offset < end or (code != "s" and struct.calcsize("=" + code) != size):
                    raise TracingUnavailable("this kernel tells of writes in another form")
                layout += "%dx%s" % (offset - end, "%ds" % size if code == "s" else code)
                end = offset + size
            number = int(next(line for line in text.splitlines() if line.startswith("ID:"))[3:])
            self._events[number] = (struct.Struct(layout), event is _QUEUE)

    def drain(self) -> int:
        """Read what the kernel has noted; the number of bytes of the fullest buffer."""
        most, began = 0, time.monotonic()
        for pipe in self._pipes:
            read = 0
            while read < 64 << 20:  # one processor may not keep the others waiting
                try:
                    length = os.readv(pipe, [self._page])
                except BlockingIOError:
                    break
                if length < self._data_at:
                    break
                read += length
                self._parse(length)
            most = max(most, read)
        for discards in self._discards:
            # Processors are read one after the other; only where none told anything the balance is of one moment.
            if discards.ranges and discards.seen < began:
                if discards.sectors == 0 or began - discards.seen > _DISCARD_SECONDS:
                    discards.ranges, discards.sectors = [], 0
        return most

    def take(self) -> Tuple[List[bytes], Optional[str]]:
        """What was written since the last take, a bitmap a disk; and why that may not be all, or None."""
        self.drain()
        lost = self.check()
        self._lost = None
        return [bitmap.take() for bitmap in self.bitmaps], lost

    def check(self) -> Optional[str]:
        """Why something may have been lost since the last take, or None."""
        if self._lost is None:
            self._lost = self._trouble()
        return self._lost

    def close(self) -> None:
        """End the tracing and take the instance away."""
        for pipe in self._pipes:
            os.close(pipe)
        self._pipes = []
        if self._instance >= 0:
            for event in (_COMPLETE, _QUEUE):
                try:
                    self._write(event + "enable", "0")
                except OSError:
                    pass
            os.close(self._instance)
            self._instance = -1
        if self._undertaker >= 0:
            process, self._undertaker = self._undertaker, -1
            os.close(self._thread_of_life)
            os.waitpid(process, 0)

    def _trouble(self) -> Optional[str]:
        try:
            missed = self._overruns()
            if missed != self._missed:
                self._missed = missed
                return "more was written than could be noted"
            switches = ("tracing_on", _COMPLETE + "enable", _QUEUE + "enable")
            off = [switch for switch in switches if self._read(switch).strip() != "1"]
            for switch in off:
                self._write(switch, "1")
            if off:
                return "the tracing was switched off"
        except (OSError, ValueError) as error:
            return "the tracing cannot be looked after: %s" % error
        for disk in self.disks:
            try:
                if disk_of(disk.name) != disk:
                    return "%s is another disk now" % disk.name
            except TracingUnavailable:
                return "%s is gone" % disk.name
        return None

    def _overruns(self) -> int:
        count = 0
        for path in self._stats:
            for line in self._read(path).splitlines():
                name, _, value = line.partition(":")
                if name in ("overrun", "commit overrun", "dropped events"):
                    count += int(value)
        return count

    def _parse(self, length: int) -> None:
        page = self._page
        (commit,) = self._commit.unpack_from(page, self._commit_at)
        if commit & 0x8000_0000:
            self._lost = "more was written than could be noted"
        at = self._data_at
        end = min(at + (commit & 0x3FFF_FFFF), length)
        little = sys.byteorder == "little"
        word = struct.Struct("=I").unpack_from
        kind_of = struct.Struct("=H").unpack_from
        events, places, bitmaps = self._events, self._places, self.bitmaps
        while at + 4 <= end:
            (head,) = word(page, at)
            kind = head & 31 if little else head >> 27
            if 0 < kind < 29:
                data, at = at + 4, at + 4 + 4 * kind
            elif kind == 0:
                data, at = at + 8, at + 4 + word(page, at + 4)[0]
            elif kind == 29:
                if not (head >> 5 if little else head & 0x07FF_FFFF):
                    return
                at += 4 + word(page, at + 4)[0]
                continue
            else:
                at += 8
                continue
            event = events.get(kind_of(page, data)[0])
            if event is None or at > end:
                continue
            dev, sector, count, rwbs = event[0].unpack_from(page, data)
            place = places.get(dev)
            if place is None or not count or rwbs[:1] == b"R":
                continue
            bitmaps[place].mark(sector, count)
            if b"D" in rwbs or b"E" in rwbs:
                self._discard(place, sector, count, event[1])

    def _discard(self, place: int, sector: int, count: int, queued: bool) -> None:
        discards = self._discards[place]
        discards.seen = time.monotonic()
        if queued:
            discards.ranges.append((sector, count))
            discards.sectors += count
            if len(discards.ranges) > 4096:
                first = min(start for start, _ in discards.ranges)
                last = max(start + length for start, length in discards.ranges)
                discards.ranges = [(first, last - first)]
            return
        for start, length in discards.ranges:
            self.bitmaps[place].mark(start, length)
        discards.sectors -= count

    def _path(self, name: str) -> str:
        return "/proc/self/fd/%d/%s" % (self._instance, name)

    def _read(self, name: str) -> str:
        with open(self._path(name)) as file:
            return file.read()

    def _write(self, name: str, text: str) -> None:
        descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC | os.O_TRUNC, dir_fd=self._instance)
        try:
            os.write(descriptor, text.encode("ascii") + b"\n")
        finally:
            os.close(descriptor)


def _tracefs() -> int:
    """A descriptor of the root of tracefs. Where it is not mounted, it is for a moment, at a private place."""
    for path in _MOUNTED:
        if os.path.isdir(path + "/instances"):
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.geteuid():
        raise TracingUnavailable("tracing is for root")
    place = "/run/rehost-tracefs-" + os.urandom(8).hex()
    try:
        os.mkdir(place, 0o700)
    except OSError as error:
        raise TracingUnavailable("tracefs is not mounted, and cannot be: %s" % error) from error
    try:
        if os.spawnvp(os.P_WAIT, "mount", ["mount", "-t", "tracefs", "nodev", place]):
            raise TracingUnavailable("tracefs is not mounted, and cannot be")
        try:
            return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            # What is open stays usable.
            os.spawnvp(os.P_WAIT, "umount", ["umount", "-l", place])
    finally:
        os.rmdir(place)


def _remove_stale(root: int) -> None:
    """Take away the instances of processes that are gone, where their undertaker did not."""
    for name in os.listdir("/proc/self/fd/%d/instances" % root):
        owner = name[len(_PREFIX) :].partition("-")[0]
        if name.startswith(_PREFIX) and owner.isdigit() and not os.path.exists("/proc/" + owner):
            try:
                os.rmdir("instances/" + name, dir_fd=root)
            except OSError:
                pass  # in use all the same: of another container


def _undertaker(root: int, name: str) -> Tuple[int, int]:
    """Start the program that takes an instance away; its id, and the pipe whose end it waits for."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.setsid()
            os.dup2(reading, 0)
            os.set_inheritable(root, True)
            path = "/proc/self/fd/%d/instances/%s" % (root, name)
            os.execvp("sh", ["sh", "-c", _UNDERTAKER, "sh", path])
        finally:
            os._exit(1)
    os.close(reading)
    return process, writing


def _fields(text: str) -> Dict[str, Tuple[int, int]]:
    """Offset and size of the fields that a `format` file tells, by their names."""
    fields = {}
    for line in text.splitlines():
        parts = line.strip().split(";")
        if parts[0].startswith("field:") and len(parts) > 2:
            name = parts[0].split()[-1].partition("[")[0]
            fields[name] = (int(parts[1].partition(":")[2]), int(parts[2].partition(":")[2]))
    return fields


def _line(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""

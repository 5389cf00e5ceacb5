"""Which bytes of a btrfs filesystem on one device are in use.

After btrfs' on-disk format (btrfs.readthedocs.io, "On-disk format"). The chunk tree tells where on the device the
addresses of the filesystem lie, the extent tree which of them are in use. Where a log of fsync waits to be replayed
the extent tree is not the last word: then everything that chunks have is in use. The superblock, its copies and the
first MiB, where boot loaders lie, always are.
"""

import heapq
import struct
from array import array
from bisect import bisect_right
from typing import Callable, Dict, Iterator, List, Set, Tuple

from rehost.agent.block_device import BLOCK_BYTES, Range
from rehost.agent.used_rules import Refused

_READ = Callable[[int, int], bytes]

_MAGIC = b"_BHRfS_M"
_SUPERBLOCK = 65536
_MIRRORS = (65536, 64 << 20, 256 << 30)
# mixed_backref 1, default_subvol 2, mixed_groups 4, lzo 8, zstd 10, big_metadata 20, extended_iref 40, raid56 80,
# skinny_metadata 100, no_holes 200, metadata_uuid 400, raid1c34 800, simple_quota 10000
_INCOMPAT_KNOWN = 0x10FFF
_CHUNK_ITEM, _EXTENT_ITEM, _METADATA_ITEM, _ROOT_ITEM = 228, 168, 169, 132
_EXTENT_ROOT = 2
_RAID5_6 = 0x180
_LEVELS = 8
_KEY = struct.Struct("<QBQ")
_STRIPE_BYTES = 32

_Key = Tuple[int, int, int]


class _Chunk(object):
    """A run of addresses, and where on the device it lies: once, or twice with DUP."""

    def __init__(self, start: int, raw: bytes) -> None:
        self.start = start
        self.length = struct.unpack_from("<Q", raw)[0]
        kind, count = struct.unpack_from("<Q", raw, 24)[0], struct.unpack_from("<H", raw, 44)[0]
        if not self.length or not 1 <= count <= 2 or len(raw) < 48 + count * _STRIPE_BYTES:
            raise Refused("a chunk of it has a form that is not known")
        # One stripe is a plain copy whatever the profile; two on one device are DUP, or RAID0 and the like.
        if kind & _RAID5_6 or (count == 2 and not kind & 0x20):
            raise Refused("a chunk of it is striped")
        stripes = [struct.unpack_from("<QQ", raw, 48 + place * _STRIPE_BYTES) for place in range(count)]
        self.device = stripes[0][0]
        self.places = [place for _, place in stripes]
        self.used = array("Q")  # begin and end of what is in use, from the start of the chunk
        if any(device != self.device for device, _ in stripes):
            raise Refused("it lies on several devices")


class Btrfs(object):
    """One reading of the map."""

    rule = "btrfs"

    def __init__(self, read: _READ, size: int, state: str) -> None:
        self._read = read
        self.used_bytes = 0
        raw = read(_SUPERBLOCK, 4096)
        if raw[0x40:0x48] != _MAGIC or struct.unpack_from("<Q", raw, 0x30)[0] != _SUPERBLOCK:
            raise ValueError("no superblock")
        needs = devices(read)
        if needs:
            raise Refused("it has " + " and ".join(sorted(needs)))
        incompat = struct.unpack_from("<Q", raw, 0xBC)[0]
        if incompat & ~_INCOMPAT_KNOWN:
            raise Refused("it has features that are not known (incompat 0x%x)" % incompat)
        self._generation, root, chunk_root, self._log = struct.unpack_from("<QQQQ", raw, 0x48)
        self._sector, self._node = struct.unpack_from("<II", raw, 0x90)
        self._total = struct.unpack_from("<Q", raw, 0x70)[0]
        chunk_generation = struct.unpack_from("<Q", raw, 0xA4)[0]
        root_level, chunk_level = bytearray(raw[0xC6:0xC8])
        # The filesystem's id as its metadata has it: another one where the visible id was changed later.
        self._id = raw[0x23B:0x24B] if incompat & 0x400 else raw[0x20:0x30]
        if not 4096 <= self._node <= 65536 or self._node & (self._node - 1) or self._total > size:
            raise ValueError("a superblock with numbers that cannot be")
        self._own = struct.unpack_from("<Q", raw, 0xC9)[0]
        self._chunks: Dict[int, _Chunk] = {}
        self._starts: List[int] = []
        self._system(raw)
        for key, item in self._items((chunk_root, chunk_level, chunk_generation), 3):
            if key[1] == _CHUNK_ITEM:
                self._add(_Chunk(key[2], item))
        self._root = (root, root_level, self._generation)

    def ranges(self) -> Iterator[Range]:
        """What is in use, in order."""
        always = [(0, min(1 << 20, self._total))]
        always += [(place, place + 4096) for place in _MIRRORS if place + 4096 <= self._total]
        self.used_bytes = sum(stop - start for start, stop in always)
        if self._log:
            for chunk in self._chunks.values():
                self._take(chunk.start, chunk.start + chunk.length)
        else:
            self._extents()
        return heapq.merge(sorted(always), self._in_chunks())

    def _in_chunks(self) -> Iterator[Range]:
        """Chunks lie apart from each other, so their ranges follow each other."""
        places = sorted((place, start) for start, chunk in self._chunks.items() for place in chunk.places)
        for place, start in places:
            used = self._chunks[start].used
            for at in range(0, len(used), 2):
                yield place + used[at], place + used[at + 1]

    def _extents(self) -> None:
        extent_root = None
        for key, item in self._items(self._root, 1):
            if key[0] == _EXTENT_ROOT and key[1] == _ROOT_ITEM:
                place, level = struct.unpack_from("<Q", item, 176)[0], bytearray(item)[238]
                extent_root = (place, level, struct.unpack_from("<Q", item, 160)[0])
        if extent_root is None:
            raise ValueError("a filesystem without an extent tree")
        for key, _ in self._items(extent_root, _EXTENT_ROOT):
            if key[1] in (_EXTENT_ITEM, _METADATA_ITEM):
                self._take(key[0], key[0] + (key[2] if key[1] == _EXTENT_ITEM else self._node))

    def _take(self, start: int, stop: int) -> None:
        """Count these addresses as in use. Gaps that are shorter than a block of the index are closed."""
        while start < stop:
            chunk = self._chunk(start)
            end = min(stop, chunk.start + chunk.length)
            low, high = start - chunk.start, end - chunk.start
            self.used_bytes += (high - low) * len(chunk.places)
            if chunk.used and low - chunk.used[-1] < BLOCK_BYTES:
                chunk.used[-1] = max(chunk.used[-1], high)
            else:
                chunk.used.extend((low, high))
            start = end

    # --- chunks and trees ---

    def _system(self, raw: bytes) -> None:
        size = struct.unpack_from("<I", raw, 0xA0)[0]
        at, end = 0x32B, 0x32B + size
        if size > 2048:
            raise ValueError("a superblock with numbers that cannot be")
        while at < end:
            key = _KEY.unpack_from(raw, at)
            count = struct.unpack_from("<H", raw, at + 17 + 44)[0]
            length = 48 + count * _STRIPE_BYTES
            if key[1] != _CHUNK_ITEM or at + 17 + length > end:
                raise ValueError("a superblock with a wrong list of chunks")
            self._add(_Chunk(key[2], raw[at + 17 : at + 17 + length]))
            at += 17 + length

    def _add(self, chunk: _Chunk) -> None:
        if chunk.device != self._own:
            raise Refused("it lies on several devices")
        if any(place + chunk.length > self._total for place in chunk.places):
            raise ValueError("a chunk beyond the end")
        if chunk.start not in self._chunks:
            self._starts.insert(bisect_right(self._starts, chunk.start), chunk.start)
        self._chunks[chunk.start] = chunk

    def _chunk(self, address: int) -> _Chunk:
        at = bisect_right(self._starts, address) - 1
        chunk: _Chunk = self._chunks[self._starts[max(at, 0)]]
        if at < 0 or address >= chunk.start + chunk.length:
            raise ValueError("an address in no chunk")
        return chunk

    def _items(self, root: Tuple[int, int, int], owner: int) -> Iterator[Tuple[_Key, bytes]]:
        """The items of a tree in order, each with its key; (address, level, generation) of the root."""
        before = (-1, 0, 0)
        todo = [root]
        while todo:
            address, level, generation = todo.pop()
            raw = self._tree_block(address, level, generation, owner)
            count = struct.unpack_from("<I", raw, 0x60)[0]
            if level:
                if count > (self._node - 101) // 33:
                    raise ValueError("a tree block with more than it holds")
                pointers = [struct.unpack_from("<QQ", raw, 101 + place * 33 + 17) for place in range(count)]
                todo.extend((child, level - 1, told) for child, told in reversed(pointers))
                continue
            if count > (self._node - 101) // 25:
                raise ValueError("a tree block with more than it holds")
            for place in range(count):
                key = _KEY.unpack_from(raw, 101 + place * 25)
                offset, size = struct.unpack_from("<II", raw, 101 + place * 25 + 17)
                if key <= before or 101 + offset + size > self._node:
                    raise ValueError("a tree that is out of order")
                before = key
                yield key, raw[101 + offset : 101 + offset + size]

    def _tree_block(self, address: int, level: int, generation: int, owner: int) -> bytes:
        chunk = self._chunk(address)
        raw = self._read(chunk.places[0] + address - chunk.start, self._node)
        told = struct.unpack_from("<Q", raw, 0x30)[0]
        written, tree = struct.unpack_from("<QQ", raw, 0x50)
        if raw[0x20:0x30] != self._id or told != address or written != generation or tree != owner:
            raise ValueError("a tree block that is another one")
        if bytearray(raw)[0x64] != level or not 0 <= level < _LEVELS:
            raise ValueError("a tree block of another level")
        return raw


def devices(read: _READ) -> Set[str]:
    """What else than this device the filesystem needs."""
    raw = read(_SUPERBLOCK, 4096)
    return {"more than one device"} if struct.unpack_from("<Q", raw, 0x88)[0] != 1 else set()

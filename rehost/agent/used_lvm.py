"""Which bytes of an LVM2 physical volume are in use: label, metadata, and the extents that logical volumes have.

After LVM2's `format_text` (lib/format_text/layout.h). What of an allocated extent is in use, only the filesystem
inside could tell: blocks of zeros are left out, no others.
"""

import re
import struct
import zlib
from typing import Callable, Dict, Iterator, List, Tuple

from rehost.agent.block_device import Range
from rehost.agent.used_rules import Refused

_READ = Callable[[int, int], bytes]

_MAGIC = b" LVM2 x[5A%r0N*>"
_CRC_START = 0xF597A6CF
_METADATA_BYTES = 64 << 20
_AREAS = 16
_TOKEN = re.compile(r'#[^\n]*|"(?:[^"\\]|\\.)*"|[{}\[\]=,]|[^\s{}\[\]=,"#]+')


class Lvm(object):
    """One reading of the map."""

    rule = "lvm"

    def __init__(self, read: _READ, size: int, state: str) -> None:
        self._read = read
        self._size = size
        self.used_bytes = 0
        self._found: List[Range] = []
        label = self._label()
        identity = read(label, 32).decode("ascii", "replace")
        at, areas = label + 40, []
        for _ in range(2):  # data areas, then metadata areas; each list ends with zeros
            locations = []
            while True:
                place, length = struct.unpack("<QQ", read(at, 16))
                at += 16
                if not place:
                    break
                locations.append((place, length))
                if len(locations) > _AREAS:
                    raise ValueError("more areas than can be")
            areas.append(locations)
        if not areas[0] or not areas[1]:
            raise Refused("its metadata lies on other physical volumes")
        # Everything before the first extent: the label, and the first copy of the metadata.
        self._found.append((0, min(max(areas[0][0][0], at), size)))
        for place, length in areas[1]:
            self._add(place, place + length)
        text = next((text for text in (self._metadata(*area) for area in areas[1]) if text), None)
        if text is not None:
            self._extents(_tree(text), identity)

    def ranges(self) -> Iterator[Range]:
        """What is in use, in order."""
        end = 0
        for start, stop in sorted(self._found):
            self.used_bytes += max(0, stop - max(start, end))
            end = max(end, stop)
            yield start, stop

    def _add(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self._size:
            raise ValueError("a range beyond the end")
        self._found.append((start, stop))

    def _label(self) -> int:
        head = self._read(0, 2048)
        for sector in range(4):
            raw = head[sector * 512 : sector * 512 + 512]
            if raw[:8] == b"LABELONE" and raw[24:32] == b"LVM2 001":
                number, told, offset = struct.unpack_from("<QII", raw, 8)
                if number != sector or told != _crc(raw[20:]) or not 32 <= offset <= 256:
                    raise ValueError("a label with a wrong checksum")
                return sector * 512 + int(offset)
        raise ValueError("no label")

    def _metadata(self, place: int, length: int) -> str:
        """The text of the volume group; empty where the volume belongs to none."""
        head = self._read(place, 512)
        told, magic, version, start, size = struct.unpack_from("<I16sIQQ", head)
        if magic != _MAGIC or version != 1 or start != place or size != length or told != _crc(head[4:]):
            raise ValueError("a metadata area with a wrong checksum")
        at, count, told, flags = struct.unpack_from("<QQII", head, 40)
        if not at or not count or flags & 1:
            return ""
        if not 512 <= at < size or count > min(size - 512, _METADATA_BYTES):
            raise ValueError("metadata beyond its area")
        first = min(count, size - at)
        raw = self._read(place + at, first) + self._read(place + 512, count - first)
        if told != _crc(raw):
            raise ValueError("metadata with a wrong checksum")
        return raw.rstrip(b"\0").decode("utf-8", "replace")

    def _extents(self, tree: Dict[str, object], identity: str) -> None:
        group = next((value for value in tree.values() if isinstance(value, dict)), None)
        if group is None:
            raise ValueError("metadata without a volume group")
        extent = _number(group.get("extent_size")) * 512
        volumes = _section(group, "physical_volumes")
        own = [name for name, pv in volumes.items() if str(_section(volumes, name)["id"]).replace("-", "") == identity]
        if len(own) != 1 or not extent:
            raise ValueError("metadata that does not know this volume")
        volume = _section(volumes, own[0])
        start, count = _number(volume.get("pe_start")) * 512, _number(volume.get("pe_count"))
        self._add(0, start)
        self._add(min(start + count * extent, self._size), self._size)  # a second copy of the metadata, or nothing
        for first, length in _uses(_section(group, "logical_volumes", optional=True), own[0]):
            if first + length > count:
                raise ValueError("an extent beyond the end")
            self._add(start + first * extent, start + (first + length) * extent)


def _uses(tree: Dict[str, object], name: str) -> Iterator[Tuple[int, int]]:
    """First extent and number of extents, of every place where a segment names the volume."""
    for value in tree.values():
        if isinstance(value, dict):
            for found in _uses(value, name):
                yield found
    length = tree.get("extent_count")
    for key, value in tree.items():
        if not isinstance(value, list):
            continue
        for item, place in zip(value, value[1:]):
            if item == '"%s"' % name and isinstance(place, str) and place.isdigit():
                count = _number(length)
                if key == "stripes":
                    stripes = max(1, _number(tree.get("stripe_count")))
                    count = (count + stripes - 1) // stripes
                yield int(place), count


def _tree(text: str) -> Dict[str, object]:
    """LVM's configuration text as dicts; lists are lists of words, and words stay as they are written."""
    words = [word for word in _TOKEN.findall(text) if not word.startswith("#")]
    at = 0
    stack: List[Dict[str, object]] = [{}]
    while at < len(words):
        if words[at] == "}":
            stack.pop()
            at += 1
        elif words[at + 1 : at + 2] == ["{"]:
            below: Dict[str, object] = {}
            stack[-1][words[at]] = below
            stack.append(below)
            at += 2
        elif words[at + 1 : at + 3] == ["=", "["]:
            end = words.index("]", at)
            stack[-1][words[at]] = [word for word in words[at + 3 : end] if word != ","]
            at = end + 1
        elif words[at + 1 : at + 2] == ["="] and at + 2 < len(words):
            stack[-1][words[at]] = words[at + 2]
            at += 3
        else:
            raise ValueError("metadata that cannot be read")
        if not stack:
            raise ValueError("metadata that cannot be read")
    if len(stack) != 1:
        raise ValueError("metadata that is cut off")
    return stack[0]


def _section(tree: Dict[str, object], name: str, optional: bool = False) -> Dict[str, object]:
    value = tree.get(name)
    if isinstance(value, dict):
        return {
            key: inner.strip('"') if key == "id" and isinstance(inner, str) else inner for key, inner in value.items()
        }
    if value is None and optional:
        return {}
    raise ValueError("metadata without %s" % name)


def _number(word: object) -> int:
    if not isinstance(word, str) or not word.isdigit():
        raise ValueError("metadata with a wrong number")
    return int(word)


def _crc(raw: bytes) -> int:
    """LVM's checksum: the CRC-32 of zlib, begun with another number and not inverted."""
    return zlib.crc32(raw, _CRC_START ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

"""A reader of ext2, ext3 and ext4 filesystems in a file, without mount and without root.

`Ext4Image` walks the directories, gives every entry with all that a manifest keeps, and reads content with its holes.
A journal that was not replayed is replayed in memory. The filesystem may come from anybody: every number is checked
before it is used, time and memory are bounded by the size of the image, and each failure is a SourceImageDamaged or
a SourceUnsupported. Checksums of metadata_csum are not compared.
"""

from __future__ import annotations

import heapq
import os
import stat
import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from rehost.errors import SourceImageDamaged, SourceUnsupported
from rehost.replication.manifest import CHUNK_BYTES, KEPT_FLAGS, Entry
from rehost.replication.tree import printable
from rehost.source import ext4_attributes, ext4_journal
from rehost.source.ext4_blocks import (
    INCOMPAT_FILETYPE,
    INCOMPAT_META_BG,
    SUPERBLOCK_OFFSET,
    Blocks,
    Superblock,
    Window,
    damaged,
)
from rehost.source.ext4_inode import (
    FLAG_CASEFOLD,
    FLAG_EA_INODE,
    FLAG_ENCRYPTED,
    FLAG_EXTENTS,
    FLAG_INLINE_DATA,
    Inode,
    extents,
    parse_inode,
)

_ROOT_INODE = 2
_PATH_BYTES = 32_768  # a longer path is refused: eight times what the kernel takes in one call
_TARGET_BYTES = 4096
_JOURNAL_BLOCKS = 10_240_000  # the most that mke2fs makes
_KNOWN_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK)
Skip = Callable[[bytes, bool], bool]
"""(path, whether it is a directory) → whether it is left out with all that is below it."""
Refused = Callable[[bytes, str], None]
"""Told of a path that cannot be read, and why."""
_DIRECTORY_ENTRY = struct.Struct("<IHBB")


class Ext4Image:
    """One filesystem at `offset` of a file, at most `length` bytes long. A context manager.

    `source` names it in messages. Raises SourceImageDamaged and SourceUnsupported, now and from every method.
    """

    def __init__(self, path: Path, offset: int = 0, length: int | None = None, source: str | None = None) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.lseek(self._descriptor, 0, os.SEEK_END)
            window = Window(
                self._descriptor,
                offset,
                max(0, size - offset) if length is None else length,
                source or str(path),
            )
            self.source = window.source
            self._blocks = Blocks(window)
            if self._blocks.superblock.needs_recovery:
                self._replay()
        except BaseException:
            os.close(self._descriptor)
            raise
        self._directory_bytes = 0

    def __enter__(self) -> Ext4Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read afterwards."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def superblock(self) -> Superblock:
        """The superblock, as it is once the journal was replayed."""
        return self._blocks.superblock

    @property
    def replayed_blocks(self) -> int:
        """How many blocks were taken from the journal."""
        return len(self._blocks.overlay)

    def _replay(self) -> None:
        number = self.superblock.journal_inode
        if not number:
            raise SourceUnsupported(
                source=self.source, reason="its journal is on another device: shut the server down cleanly first"
            )
        places = array("Q")
        for logical, physical, count in extents(self._blocks, self.inode(number)):
            if logical != len(places) or logical + count > _JOURNAL_BLOCKS:
                raise damaged(self.source, "its journal has holes, or is too long")
            places.extend(range(physical, physical + count))
        self._blocks.lay_over(ext4_journal.replay(self._blocks, places))

    # --- inodes -----------------------------------------------------------------------------------------------

    def inode(self, number: int) -> Inode:
        """The inode of that number."""
        superblock = self.superblock
        if not 0 < number <= superblock.inodes_count:
            raise damaged(self.source, f"it names inode {number} of {superblock.inodes_count}")
        group, index = divmod(number - 1, superblock.inodes_per_group)
        at = self._inode_table(group) * superblock.block_size + index * superblock.inode_size
        block, start = divmod(at, superblock.block_size)
        raw = self._blocks.block(block)[start : start + superblock.inode_size]
        return parse_inode(raw, number, self.source)

    def _inode_table(self, group: int) -> int:
        """The first block of a group's inodes, from its descriptor."""
        superblock = self.superblock
        per_block = superblock.block_size // superblock.descriptor_size
        table, index = divmod(group, per_block)
        if superblock.incompat & INCOMPAT_META_BG and table >= superblock.first_meta_bg:
            first_group = table * per_block
            block = superblock.first_data_block + first_group * superblock.blocks_per_group
            block += superblock.has_backup(first_group)
            if superblock.block_size == 1024 and table == 0 and superblock.first_data_block == 0:
                block += 1
        else:
            # After the superblock, which is in block 1 where blocks have 1 KiB, even if the first group begins at 0.
            block = SUPERBLOCK_OFFSET // superblock.block_size + 1 + table
        raw = self._blocks.block(block)
        at = index * superblock.descriptor_size
        (low,) = struct.unpack_from("<I", raw, at + 8)
        high = struct.unpack_from("<I", raw, at + 0x28)[0] if superblock.descriptor_size >= 64 else 0
        return int(low | high << 32)

    def attributes(self, inode: Inode) -> ext4_attributes.Attributes:
        """The extended attributes of an inode."""
        block = self._blocks.block(inode.attribute_block) if inode.attribute_block else None
        return ext4_attributes.parse(inode.raw, inode.extra_size, block, self._attribute_value, self.source)

    def _attribute_value(self, number: int, size: int) -> bytes:
        inode = self.inode(number)
        if not inode.flags & FLAG_EA_INODE or inode.flags & FLAG_INLINE_DATA or inode.size < size:
            raise damaged(self.source, f"inode {number} is named for the value of an attribute and holds none")
        return self.content(inode, size)

    def entry(self, path: bytes, inode: Inode) -> Entry:
        """The inode as a row of the manifest, without chunks, device number and link group."""
        kind = stat.S_IFMT(inode.mode)
        if kind not in _KNOWN_TYPES:
            raise damaged(self.source, f"/{printable(path)} has the unknown type {inode.mode:#o}")
        device = inode.device if kind in (stat.S_IFCHR, stat.S_IFBLK) else (0, 0)
        if inode.flags & FLAG_ENCRYPTED and kind == stat.S_IFLNK:
            raise self._encrypted(path)
        if kind == stat.S_IFREG and inode.size > self.superblock.block_size << 32:
            raise damaged(self.source, f"/{printable(path)} has a size of {inode.size}")
        return Entry(
            path=path,
            mode=inode.mode,
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size if kind == stat.S_IFREG else 0,
            atime_ns=inode.atime_ns,
            mtime_ns=inode.mtime_ns,
            ctime_ns=inode.ctime_ns,
            rdev_major=device[0],
            rdev_minor=device[1],
            flags=inode.flags & KEPT_FLAGS,
            target=self.target(inode) if kind == stat.S_IFLNK else None,
            xattrs=self.attributes(inode).listed,
            ino=inode.number,
        )

    def target(self, inode: Inode) -> bytes:
        """Where a symbolic link leads."""
        if not 0 < inode.size < _TARGET_BYTES:
            raise damaged(self.source, f"inode {inode.number} is a symbolic link of {inode.size} bytes")
        if not inode.flags & (FLAG_EXTENTS | FLAG_INLINE_DATA) and inode.size < len(inode.map):
            target = inode.map[: inode.size]
        else:
            target = self.content(inode, inode.size)
        if b"\0" in target or len(target) != inode.size:
            raise damaged(self.source, f"inode {inode.number} is a symbolic link with a bad target")
        return target

    def _encrypted(self, path: bytes) -> SourceUnsupported:
        return SourceUnsupported(
            source=self.source, reason=f"/{printable(path)} is encrypted by the filesystem (fscrypt): exclude it"
        )

    # --- content ----------------------------------------------------------------------------------------------

    def data(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """(offset in the file, length, byte in the filesystem) of what was written, up to the file's size."""
        size = self.superblock.block_size
        for logical, physical, count in extents(self._blocks, inode):
            length = min(count * size, inode.size - logical * size)
            if length <= 0:
                return
            yield logical * size, length, physical * size

    def pieces(self, inode: Inode, piece_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of the content without its holes, cut at multiples of `piece_bytes`."""
        if inode.flags & FLAG_ENCRYPTED:
            raise self._encrypted(b"inode %d" % inode.number)
        if inode.flags & FLAG_INLINE_DATA:
            content = self._inline(inode)[: inode.size]
            if content:
                yield 0, content
            return
        start, parts, filled = 0, list[bytes](), 0
        for offset, length, at in self.data(inode):
            while length:
                if parts and (offset != start + filled or offset % piece_bytes == 0):
                    yield start, b"".join(parts)
                    parts = []
                if not parts:
                    start, filled = offset, 0
                count = min(length, piece_bytes - offset % piece_bytes)
                parts.append(self._blocks.bytes_at(at, count))
                filled, offset, at, length = filled + count, offset + count, at + count, length - count
        if parts:
            yield start, b"".join(parts)

    def content(self, inode: Inode, limit: int) -> bytes:
        """The first `limit` bytes of the content, holes as zeros."""
        wanted = min(inode.size, limit)
        parts, at = list[bytes](), 0
        for offset, piece in self.pieces(inode, 65_536):
            if offset >= wanted:
                break
            parts += [bytes(offset - at), piece]
            at = offset + len(piece)
        return b"".join([*parts, bytes(max(0, wanted - at))])[:wanted]

    def _inline(self, inode: Inode) -> bytes:
        return inode.map + self.attributes(inode).inline_data

    # --- names ------------------------------------------------------------------------------------------------

    def names(self, inode: Inode, path: bytes) -> Iterator[tuple[bytes, int]]:
        """(name, inode number) of each entry of a directory; `path` is for messages."""
        if inode.flags & FLAG_ENCRYPTED:
            raise self._encrypted(path)
        if inode.flags & FLAG_CASEFOLD:
            raise SourceUnsupported(
                source=self.source,
                reason=f"/{printable(path)} takes names without regard to case, which is not kept: exclude it",
            )
        seen: set[bytes] = set()
        for name, number in self._listed(inode):
            if name in (b".", b".."):
                continue
            if not name or b"/" in name or b"\0" in name or name in seen:
                raise damaged(self.source, f"the directory /{printable(path)} has a bad name, or one twice")
            seen.add(name)
            yield name, number

    def _listed(self, inode: Inode) -> Iterator[tuple[bytes, int]]:
        if inode.flags & FLAG_INLINE_DATA:
            # The first four bytes are the parent; entries never cross from the inode into the attribute.
            yield from self._directory_block(inode.map[4:])
            yield from self._directory_block(self.attributes(inode).inline_data)
            return
        size = self.superblock.block_size
        for _, length, at in self.data(inode):
            if length % size:
                raise damaged(self.source, f"inode {inode.number} is a directory of {inode.size} bytes")
            # A block belongs to one directory: more than there are means that directories share them.
            self._directory_bytes += length
            for start in range(at, at + length, size):
                yield from self._directory_block(self._blocks.block(start // size))

    def _directory_block(self, raw: bytes) -> Iterator[tuple[bytes, int]]:
        """Also reads the index blocks of hashed directories: to a linear reader they look like one unused entry."""
        at, size = 0, len(raw)
        long_names = not self.superblock.incompat & INCOMPAT_FILETYPE
        inodes = self.superblock.inodes_count
        while at + 8 <= size:
            number, length, name_length, kind = _DIRECTORY_ENTRY.unpack_from(raw, at)
            if size >= 65_536:
                length = size if length in (0, 65_535) else length & 65_532 | (length & 3) << 16
            if long_names:
                name_length |= kind << 8
            if length < 8 or length & 3 or at + length > size or (number and name_length + 8 > length):
                raise damaged(self.source, "a directory has an entry of a wrong length")
            if number:
                if number > inodes:
                    raise damaged(self.source, f"a directory names inode {number} of {inodes}")
                yield raw[at + 8 : at + 8 + name_length], number
            at += length

    def walk(
        self, skip: Skip = lambda path, is_directory: False, refused: Refused | None = None
    ) -> Iterator[tuple[bytes, Inode]]:
        """(path, inode) of every name, the root as b"" first, in the order of the paths' bytes.

        A path for which `skip` says True is left out with all that is below it. A directory that has no reader is
        told to `refused`, and its content left out; without `refused` it is a SourceUnsupported.
        """
        self._directory_bytes = 0
        limit = self.superblock.blocks_count * self.superblock.block_size
        root = self.inode(_ROOT_INODE)
        if not stat.S_ISDIR(root.mode):
            raise damaged(self.source, "its root is no directory")
        seen = {_ROOT_INODE}
        yield b"", root
        # Of each directory on the way: its path, the names in it, the next one last, and the directories among those
        # before it, as their names with a slash: what is in "a" comes behind "a-b" and before "a0".
        way: list[tuple[bytes, list[tuple[bytes, int]], list[tuple[bytes, int]]]] = []
        at: tuple[bytes, int] | None = (b"", _ROOT_INODE)
        while at is not None or way:
            if at is not None:
                way.append((at[0], self._names_backwards(self.inode(at[1]), at[0], refused), []))
                at = None
                if self._directory_bytes > limit:
                    raise damaged(self.source, "its directories share blocks")
            directory, names, below = way[-1]
            if below and (not names or below[0][0] < names[-1][0]):
                name, number = heapq.heappop(below)
                at = _joined(directory, name[:-1]), number
            elif names:
                name, number = names.pop()
                path = _joined(directory, name)
                if len(path) > _PATH_BYTES:
                    raise SourceUnsupported(source=self.source, reason=f"/{printable(path[:200])}… is nested too deep")
                child = self.inode(number)
                if skip(path, stat.S_ISDIR(child.mode)):
                    continue
                if child.links == 0 or child.flags & FLAG_EA_INODE:
                    raise damaged(self.source, f"/{printable(path)} leads to an inode that is not in use")
                if stat.S_ISDIR(child.mode):
                    if number in seen:
                        raise damaged(self.source, f"the directory /{printable(path)} is in two places")
                    seen.add(number)
                    heapq.heappush(below, (name + b"/", number))
                yield path, child
            else:
                way.pop()

    def _names_backwards(self, inode: Inode, path: bytes, refused: Refused | None) -> list[tuple[bytes, int]]:
        try:
            return sorted(self.names(inode, path), reverse=True)
        except SourceUnsupported as error:
            if refused is None:
                raise
            refused(path, error.facts["reason"])
            return []

    def entries(self, skip: Skip = lambda path, is_directory: False, refused: Refused | None = None) -> Iterator[Entry]:
        """Every entry, as `walk` finds them; without chunks, device number and link group."""
        for entry, _ in self.entries_and_names(skip, refused):
            yield entry

    def entries_and_names(
        self, skip: Skip = lambda path, is_directory: False, refused: Refused | None = None
    ) -> Iterator[tuple[Entry, int]]:
        """Every entry, and how many names its inode says that it has."""
        for path, inode in self.walk(skip, refused):
            try:
                yield self.entry(path, inode), inode.links
            except SourceImageDamaged as error:
                raise damaged(self.source, f"/{printable(path)}: {error.facts['reason']}") from error
            except SourceUnsupported as error:
                if refused is None:
                    raise
                refused(path, error.facts["reason"])

    def child(self, directory: Inode, name: bytes) -> Inode | None:
        """The inode of one name in a directory; None where the name is not there."""
        number = next((number for found, number in self.names(directory, name) if found == name), None)
        return None if number is None else self.inode(number)


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name

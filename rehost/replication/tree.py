"""A server's files as a value: a files table that can be looked into and edited without touching anything.

Fix-ups are functions from a Tree to a list of changes. `Tree.apply` gives a new Tree; the store is never written.
"""

from __future__ import annotations

import bisect
import difflib
import hashlib
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from rehost.replication.manifest import (
    CHUNK_BYTES,
    FILES_SCHEMA,
    Chunk,
    ChunkReader,
    Entry,
    binary_parts,
    entry_of,
    single,
    table_of,
)

_LINKS_FOLLOWED = 40  # as the kernel does
_SHOWN_BYTES = 65_536  # longer or binary content is told of in a diff, not shown
_OPEN_TO_OTHERS = 0o044
# What follows such a word in a configuration is nobody else's, even where the file is open to all.
_SECRET = re.compile(
    r"""(?ix)( [\w.-]* (?: passw(?:or)?d | passphrase | pbkdf2 | psk | secret | token | wep-key | private-?key )
    [\w.-]* (?: \s*[=:]\s*[\"']? | \s+ ) ) [^\s,;\"']+"""
)


@dataclass(frozen=True)
class Put:
    """A regular file gets these bytes. Owner, mode and attributes of a present file are kept unless given."""

    path: bytes
    content: bytes
    mode: int | None = None  # permission bits
    mtime_ns: int | None = None
    public: bool = False  # nothing of a file that is closed to others is in it: diffs show it, whatever its mode


@dataclass(frozen=True)
class Symlink:
    """A symbolic link appears, in place of whatever had the name."""

    path: bytes
    target: bytes


@dataclass(frozen=True)
class Directory:
    """A directory appears, if it is not there."""

    path: bytes
    mode: int = 0o755


@dataclass(frozen=True)
class Remove:
    """A name goes, and what is below it."""

    path: bytes


Change = Put | Symlink | Directory | Remove


class Tree:
    """A files table with edits over it.

    The table is that of FILES_SCHEMA, sorted by path. `read_chunk` makes a Tree a ChunkReader for the content of its
    own rows, edited or not.
    """

    def __init__(self, table: pa.Table, chunks: ChunkReader) -> None:
        self._table = table.combine_chunks()
        self._chunks = chunks
        self._edited: dict[bytes, Entry | None] = {}
        self._content: dict[bytes, bytes] = {}
        self._public: frozenset[bytes] = frozenset()  # edits that diffs show, whatever the mode
        self._columns = {name: single(self._table[name]) for name in FILES_SCHEMA.names}
        self._paths = _Paths(self._table["path"])

    def get(self, path: bytes) -> Entry | None:
        """The entry of exactly that path; symbolic links are not followed."""
        if path in self._edited:
            return self._edited[path]
        index = bisect.bisect_left(self._paths, path)
        if index < len(self._paths) and self._paths[index] == path:
            return entry_of({name: column[index].as_py() for name, column in self._columns.items()})
        return None

    def below(self, directory: bytes) -> Iterator[bytes]:
        """Every path below that directory, in order."""
        prefix = directory + b"/" if directory else b""
        found = {p for p, entry in self._edited.items() if entry is not None and p and p.startswith(prefix)}
        for index in range(bisect.bisect_left(self._paths, prefix), len(self._paths)):
            path = self._paths[index]
            if not path.startswith(prefix):
                break
            if path and path not in self._edited:
                found.add(path)
        return iter(sorted(found))

    def children(self, directory: bytes) -> list[bytes]:
        """The paths directly in that directory, in order."""
        prefix = directory + b"/" if directory else b""
        found = {
            path
            for path, entry in self._edited.items()
            if entry is not None and path and path.startswith(prefix) and b"/" not in path[len(prefix) :]
        }
        index = bisect.bisect_left(self._paths, prefix)
        while index < len(self._paths):
            path = self._paths[index]
            if not path.startswith(prefix):
                break
            name, deeper, _ = path[len(prefix) :].partition(b"/")
            if deeper:
                # All that is below this child is passed over: "0" is the byte after "/".
                index = bisect.bisect_left(self._paths, prefix + name + b"0", index)
                continue
            if path and path not in self._edited:
                found.add(path)
            index += 1
        return sorted(found)

    def resolve(self, path: bytes) -> Entry | None:
        """The entry that the path leads to inside the tree, symbolic links followed as a chroot would; or None."""
        todo = [part for part in path.split(b"/") if part]
        at: list[bytes] = []
        links = 0
        while todo:
            part = todo.pop(0)
            if part == b".":
                continue
            if part == b"..":
                at = at[:-1]
                continue
            entry = self.get(b"/".join([*at, part]))
            if entry is None:
                return None
            if entry.is_symlink:
                links += 1
                if links > _LINKS_FOLLOWED:
                    return None
                target = entry.target or b""
                if target.startswith(b"/"):
                    at = []
                todo = [p for p in target.split(b"/") if p] + todo
            else:
                at.append(part)
        return self.get(b"/".join(at))

    def read(self, path: bytes, limit: int = 1 << 20) -> bytes | None:
        """The content of the regular file that the path leads to, at most `limit` bytes; None where there is none."""
        entry = self.resolve(path)
        if entry is None or not entry.is_file:
            return None
        return b"".join(_with_holes(entry, self, limit))[:limit]

    def read_chunk(self, sha256: bytes) -> bytes:
        edited = self._content.get(sha256)
        return edited if edited is not None else self._chunks.read_chunk(sha256)

    def apply(self, changes: Iterable[Change]) -> Tree:
        """A new Tree with these changes made, in order. Parents that are missing appear as directories."""
        new = Tree.__new__(Tree)
        new._table, new._chunks, new._paths, new._columns = self._table, self._chunks, self._paths, self._columns
        new._edited, new._content, new._public = dict(self._edited), dict(self._content), self._public
        for change in changes:
            new._make(change)
        return new

    def _make(self, change: Change) -> None:
        path = self._real(change.path)
        if isinstance(change, Remove):
            self._remove(path)
            return
        volume, now_ns = self._parents(path)
        present = self.get(path)
        if isinstance(change, Directory):
            if present is None or not present.is_directory:
                self._edited[path] = _at(Entry(path, stat.S_IFDIR | change.mode, volume=volume), now_ns)
            return
        if present is not None and present.is_directory:
            self._remove(path)
        if isinstance(change, Symlink):
            self._edited[path] = _at(Entry(path, stat.S_IFLNK | 0o777, target=change.target, volume=volume), now_ns)
            return
        base = present if present is not None and present.is_file else Entry(path, stat.S_IFREG | 0o644, volume=volume)
        mtime_ns = change.mtime_ns if change.mtime_ns is not None else (base.mtime_ns or now_ns)
        edited = replace(
            base,
            mode=stat.S_IFREG | (change.mode if change.mode is not None else stat.S_IMODE(base.mode)),
            size=len(change.content),
            chunks=tuple(self._keep(change.content)),
            link_group=None,  # an edited name leaves its hard links as they were
            unstable=False,
        )
        self._edited[path] = _at(edited, mtime_ns)
        self._public = self._public | {path} if change.public else self._public - {path}

    def _remove(self, path: bytes) -> None:
        for gone in [path, *self.below(path)]:
            if self.get(gone) is not None:
                self._edited[gone] = None

    def _real(self, path: bytes) -> bytes:
        """The path with its directory's symbolic links followed: lib/x where lib leads to usr/lib is made there.

        Raises ValueError for the root, and for `.` and `..`.
        """
        parts = [part for part in path.split(b"/") if part]
        if not parts or b"." in parts or b".." in parts:
            raise ValueError(f"no path for an edit: {printable(path)}")
        for depth in range(len(parts) - 1, 0, -1):
            above = self.resolve(b"/".join(parts[:depth]))
            if above is not None and above.is_directory:
                return b"/".join([above.path, *parts[depth:]] if above.path else parts[depth:])
        return b"/".join(parts)

    def _parents(self, path: bytes) -> tuple[int, int]:
        """Make the directories above; (volume, mtime) of the nearest one that was there."""
        parts = path.split(b"/")[:-1]
        root = self.get(b"")
        volume, now_ns = (root.volume, root.mtime_ns) if root else (0, 0)
        for depth in range(1, len(parts) + 1):
            above = b"/".join(parts[:depth])
            entry = self.get(above)
            if entry is None or not entry.is_directory:
                entry = _at(Entry(above, stat.S_IFDIR | 0o755, volume=volume), now_ns)
                self._edited[above] = entry
            volume, now_ns = entry.volume, entry.mtime_ns
        return volume, now_ns

    def _keep(self, content: bytes) -> Iterator[Chunk]:
        for offset in range(0, len(content), CHUNK_BYTES):
            piece = content[offset : offset + CHUNK_BYTES]
            name = hashlib.sha256(piece).digest()
            self._content[name] = piece
            yield Chunk(offset, len(piece), name)

    def table(self) -> pa.Table:
        """The files table with the edits in it, sorted by path."""
        if not self._edited:
            return self._table
        edited = pa.array(sorted(self._edited), pa.binary())
        kept = self._table.filter(pc.invert(pc.is_in(self._table["path"], edited)))
        added = table_of([entry for entry in self._edited.values() if entry is not None])
        return pa.concat_tables([kept, added]).sort_by("path").combine_chunks()

    def diff(self, before: Tree | None = None) -> str:
        """What the edits changed, or those since `before` (an earlier state of this tree): a unified diff for people.

        Named, not shown, is content that is binary or long, and that of files which neither group nor others may read;
        what follows a word such as `password` is taken out of every line.
        """
        base = before if before is not None else Tree(self._table, self._chunks)
        changed = (path for path in sorted(self._edited) if self._edited[path] != base.get(path))
        return "".join(line for path in changed for line in self._diff_of(path, base))

    def _diff_of(self, path: bytes, base: Tree) -> Iterator[str]:
        before, after = base.get(path), self._edited[path]
        name = printable(path)
        if before is not None and after is not None and before.is_file and before.chunks == after.chunks:
            if before.mode != after.mode:
                yield f"Another mode: /{name} ({_told(before)} -> {_told(after)})\n"
            return
        if base._is_closed(before) or self._is_closed(after):
            yield f"Not shown, closed to others: /{name} ({_told(before)} -> {_told(after)})\n"
            return
        old, new = _shown(before, base), _shown(after, self)
        if old is None or new is None:
            yield f"Binary or long: /{name} ({_told(before)} -> {_told(after)})\n"
            return
        lines = list(
            difflib.unified_diff(
                old, new, f"a/{name}" if before else "/dev/null", f"b/{name}" if after else "/dev/null"
            )
        )
        if not lines and (before is None) != (after is None):
            lines = [f"Only in {'the image' if after else 'the source'}: /{name} ({_told(after or before)})\n"]
        yield from (line if line.endswith("\n") else line + "\n" for line in lines)

    def _is_closed(self, entry: Entry | None) -> bool:
        """A file of the source that only its owner may read, or an edit that has something of one in it."""
        return (
            entry is not None
            and entry.is_file
            and entry.size > 0
            and not entry.mode & _OPEN_TO_OTHERS
            and entry.path not in self._public
        )


def printable(path: bytes) -> str:
    """A path for logs, pages and reports: every control character and stray byte is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class _Paths(Sequence[bytes]):
    """The sorted paths of a table, for bisecting: no object is kept for each of them."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        offsets, content = binary_parts(single(column))
        self._offsets, self._content = offsets.data, content.data

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> bytes:  # type: ignore[override]
        return bytes(self._content[self._offsets[index] : self._offsets[index + 1]])


def _at(entry: Entry, ns: int) -> Entry:
    return replace(entry, atime_ns=ns, mtime_ns=ns, ctime_ns=ns)


def _with_holes(entry: Entry, chunks: ChunkReader, limit: int) -> Iterator[bytes]:
    at = 0
    for chunk in entry.chunks:
        if at >= limit:
            return
        if chunk.offset > at:
            yield bytes(min(chunk.offset - at, limit - at))
        yield chunks.read_chunk(chunk.sha256)
        at = chunk.offset + chunk.length
    if entry.size > at and limit > at:
        yield bytes(min(entry.size, limit) - at)


def _shown(entry: Entry | None, tree: Tree) -> Sequence[str] | None:
    if entry is None or entry.is_directory:
        return []
    if entry.is_symlink:
        return [f"symbolic link to {printable(entry.target or b'')}\n"]
    if not entry.is_file or entry.size > _SHOWN_BYTES:
        return None
    content = b"".join(_with_holes(entry, tree, entry.size))
    if b"\0" in content:
        return None
    return [_SECRET.sub(r"\1(not shown)", printable(line)) + "\n" for line in content.splitlines()]


def _told(entry: Entry | None) -> str:
    if entry is None:
        return "absent"
    return f"{stat.filemode(entry.mode)} {entry.size} bytes"

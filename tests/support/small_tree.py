"""Small trees by hand: a dictionary of paths and contents becomes a Tree."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Mapping

from rehost.replication.manifest import Chunk, Entry, table_of
from rehost.replication.tree import Tree


class Contents:
    """A ChunkReader over what was put into it."""

    def __init__(self) -> None:
        self.held: dict[bytes, bytes] = {}

    def keep(self, content: bytes) -> Chunk:
        name = hashlib.sha256(content).digest()
        self.held[name] = content
        return Chunk(0, len(content), name)

    def read_chunk(self, sha256: bytes) -> bytes:
        return self.held[sha256]


def small_tree(files: Mapping[str, bytes | str | None]) -> Tree:
    """A tree of these files; a str is the target of a symbolic link, None a directory. Parents appear by themselves."""
    contents = Contents()
    entries = {b"": Entry(b"", stat.S_IFDIR | 0o755)}
    for name, content in files.items():
        path = name.encode("utf-8", "surrogateescape")
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            parent = b"/".join(parts[:depth])
            entries.setdefault(parent, Entry(parent, stat.S_IFDIR | 0o755))
        if content is None:
            entries[path] = Entry(path, stat.S_IFDIR | 0o755)
        elif isinstance(content, str):
            entries[path] = Entry(path, stat.S_IFLNK | 0o777, target=content.encode())
        else:
            chunks = (contents.keep(content),) if content else ()
            entries[path] = Entry(path, stat.S_IFREG | 0o644, size=len(content), chunks=chunks)
    return Tree(table_of(list(entries.values())), contents)

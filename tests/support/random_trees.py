"""Random trees for property tests: a strategy that draws what a tree is to hold, and the making of it on disk."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from rehost.replication.manifest import CHUNK_BYTES
from tests.support.trees import ACCESS_ACL, NODUMP, set_flags

_NAMES = st.one_of(
    st.sampled_from([b"a", b"a-", b"a.", b"a0", b"-", b"\n", b"\xff", b" ", b"x" * 255]),
    st.binary(min_size=1, max_size=12).filter(lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")),
)
_TIMES = st.integers(-(1 << 31) * 10**9, ((1 << 33) - 1) * 10**9 + 999_999_999)  # what ext4 holds, and a bit less
_XATTRS = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda n: b"\0" not in n).map(lambda n: b"user." + n),
    st.binary(max_size=80),
    max_size=3,
)
_PIECES = st.lists(
    st.tuples(
        st.integers(0, 3 * CHUNK_BYTES // 4096).map(lambda block: block * 4096),
        st.sampled_from([1, 100, 4095, 4096, 4097, 70_000, CHUNK_BYTES, CHUNK_BYTES + 1]),
    ),
    max_size=3,
)


@dataclass(frozen=True)
class Item:
    """One name to make, under the directory that `parent` counts; what a kind has no use for is ignored."""

    parent: int
    name: bytes
    kind: str  # directory, file, symlink, fifo, device, link
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    xattrs: dict[bytes, bytes]
    pieces: list[tuple[int, int]]
    tail: int
    other: int
    target: bytes
    special: bool  # an ACL on files, the no-dump flag on directories


def items(*, root: bool) -> st.SearchStrategy[list[Item]]:
    """Lists of items; with `root` also devices and other owners."""
    kinds = ["directory", "directory", "file", "file", "file", "symlink", "fifo", "link"] + ["device"] * root
    ids = st.sampled_from([0, 1, 1000, 65_534, 70_000, 4_000_000_000]) if root else st.nothing()
    return st.lists(
        st.builds(
            Item,
            parent=st.integers(0, 20),
            name=_NAMES,
            kind=st.sampled_from(kinds),
            mode=st.integers(0, 0o7777) if root else st.integers(0, 0o777).map(lambda mode: mode | 0o600),
            owner=st.tuples(ids, ids) if root else st.just((os.geteuid(), os.getegid())),
            mtime_ns=_TIMES,
            xattrs=_XATTRS,
            pieces=_PIECES,
            tail=st.integers(0, 100_000),
            other=st.integers(0, 20),
            target=st.binary(min_size=1, max_size=80).filter(lambda t: b"\0" not in t),
            special=st.booleans(),
        ),
        max_size=14,
    )


def make_tree(directory: Path, drawn: list[Item]) -> None:
    """Make a drawn tree in an empty directory; a name that is taken is passed over."""
    directories = [os.fsencode(directory)]
    others: list[bytes] = []
    made: list[tuple[bytes, Item]] = []
    for item in drawn:
        path = os.path.join(directories[item.parent % len(directories)], item.name)
        if os.path.lexists(path):
            continue
        if item.kind == "directory":
            os.mkdir(path, 0o700)
            directories.append(path)
        elif item.kind == "symlink":
            os.symlink(item.target, path)
        elif item.kind == "fifo":
            os.mkfifo(path)
        elif item.kind == "device":
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(item.other, item.tail))
        elif item.kind == "link" and others:
            os.link(others[item.other % len(others)], path, follow_symlinks=False)
            continue
        else:
            _write(path, item)
        if item.kind != "directory":
            others.append(path)
        made.append((path, item))
    for path, item in reversed(made):
        _dress(path, item)


def _write(path: bytes, item: Item) -> None:
    with open(path, "wb") as file:
        for number, (offset, length) in enumerate(item.pieces):
            file.seek(offset)
            file.write(bytes([number + 1]) * length)
        file.truncate(max([item.tail if not item.pieces else 0, *(o + n + item.tail for o, n in item.pieces)]))


def _dress(path: bytes, item: Item) -> None:
    status = os.lstat(path)
    follow = not stat.S_ISLNK(status.st_mode)
    os.chown(path, *item.owner, follow_symlinks=follow)
    if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
        for name, value in item.xattrs.items():
            os.setxattr(path, name, value)
        if item.special and stat.S_ISREG(status.st_mode):
            os.setxattr(path, b"system.posix_acl_access", ACCESS_ACL)
        elif item.special:
            set_flags(path, NODUMP)
    if follow:
        os.chmod(path, item.mode)
    os.utime(path, ns=(item.mtime_ns, item.mtime_ns), follow_symlinks=follow)

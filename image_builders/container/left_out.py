"""What stays behind when a server becomes a container image: left_out.toml, read and applied to a files table."""

from __future__ import annotations

import functools
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rehost.replication.tree import Tree
from rehost.source.inventory import Record

_FILE_TYPE = 0o170000
_KINDS = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "link": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "block": stat.S_IFBLK,
    "character": stat.S_IFCHR,
}
_SWAP_FILES = 16  # that many of a source's fstab are looked at


@dataclass(frozen=True)
class Group:
    """Entries that stay behind together, for one reason. `kinds` empty: every kind; `max_bytes` None: every size."""

    name: str
    reason: str
    patterns: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    max_bytes: int | None = None


@dataclass(frozen=True)
class Mask:
    """Units of systemd that are not started in a container, for one reason."""

    name: str
    reason: str
    units: tuple[str, ...]


@dataclass(frozen=True)
class Rules:
    """All of left_out.toml."""

    groups: tuple[Group, ...]
    masks: tuple[Mask, ...]
    keep_xattrs: tuple[str, ...]
    drop_xattrs: tuple[str, ...]
    silent_processes: frozenset[str]  # they listened on the source and do not in a container

    @property
    def masked_units(self) -> frozenset[str]:
        """The units of all masks."""
        return frozenset(unit for mask in self.masks for unit in mask.units)


class LeftOut(Record):
    """What one group left behind."""

    group: str
    reason: str
    entries: int
    bytes: int  # of the files among them


@functools.cache
def rules() -> Rules:
    """The rules of left_out.toml beside this module."""
    text = (Path(__file__).parent / "left_out.toml").read_text(encoding="utf-8")
    data = tomllib.loads(text)
    return Rules(
        groups=tuple(
            Group(
                name=group["name"],
                reason=group["reason"],
                patterns=tuple(group["patterns"]),
                kinds=tuple(group.get("kinds", ())),
                max_bytes=group.get("max_bytes"),
            )
            for group in data["group"]
        ),
        masks=tuple(Mask(mask["name"], mask["reason"], tuple(mask["units"])) for mask in data["mask"]),
        keep_xattrs=tuple(data["xattrs"]["keep"]),
        drop_xattrs=tuple(data["xattrs"]["drop"]),
        silent_processes=frozenset(data["listeners"]["processes"]),
    )


def leave_out(tree: Tree) -> tuple[Tree, tuple[LeftOut, ...]]:
    """The tree without what no container needs, and what each group of the rules left behind."""
    table = tree.table()
    # Byte by byte, because RE2 reads a pattern as text and a path is not.
    swap = ["".join(f"\\x{byte:02x}" for byte in path) for path in swap_files(tree)]
    path, size = table["path"], table["size"]
    kind = pc.bit_wise_and(table["mode"], pa.scalar(_FILE_TYPE, pa.uint32()))
    gone = np.zeros(len(table), dtype=bool)
    told = []
    for group in rules().groups:
        expressions = [expression(pattern) for pattern in group.patterns]
        if group.name == "swap":
            expressions += swap
        pattern = r"(?s)\A(?:" + "|".join(expressions) + r")\z"
        mask = pc.match_substring_regex(path, pattern)
        if group.kinds:
            kinds = pa.array([_KINDS[name] for name in group.kinds], pa.uint32())
            mask = pc.and_(mask, pc.is_in(kind, kinds))
        if group.max_bytes is not None:
            mask = pc.and_(mask, pc.less_equal(size, pa.scalar(group.max_bytes, pa.uint64())))
        hit = mask.to_numpy(zero_copy_only=False) & ~gone
        gone |= hit
        if hit.any():
            total = pc.sum(size.filter(pa.array(hit))).as_py()
            told.append(LeftOut(group=group.name, reason=group.reason, entries=int(hit.sum()), bytes=total))
    return Tree(table.filter(pa.array(~gone)), tree), tuple(told)


def expression(pattern: str) -> str:
    """A pattern of left_out.toml as a regular expression of RE2."""
    parts = re.split(r"(\*\*/|/\*\*$|^\*\*$|\*|\?|\[[^\]]+\])", pattern)
    meaning = {"**/": "(?:.*/)?", "/**": "/.+", "**": ".+", "*": "[^/]*", "?": "[^/]"}
    return "".join(meaning.get(part) or (part if part.startswith("[") else re.escape(part)) for part in parts)


def swap_files(tree: Tree) -> tuple[bytes, ...]:
    """The paths of the swap files that /etc/fstab names."""
    found = []
    for line in (tree.read(b"etc/fstab", 65_536) or b"").splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[2] == b"swap" and fields[0].startswith(b"/"):
            entry = tree.resolve(fields[0].lstrip(b"/"))
            if entry is not None and entry.is_file:
                found.append(entry.path)
    return tuple(found[:_SWAP_FILES])


def carried_xattr(name: bytes) -> bool:
    """Whether a layer carries the extended attribute of that name."""
    text = name.decode("latin-1")
    return _matches(text, rules().keep_xattrs) and not _matches(text, rules().drop_xattrs)


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(text.startswith(p[:-1]) if p.endswith("*") else text == p for p in patterns)

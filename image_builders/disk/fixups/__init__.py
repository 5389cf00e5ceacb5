"""Fix-ups: what has to change in a copy so that it starts on another machine.

A fix-up is a pure function from a tree and its context to a list of changes. Each topic is one file of this folder
with a `FIXUP`; a new one is a new file and nothing else.

A fix-up looks at nothing but what it names: `reads` are the files whose content it may read, and those that it edits
or removes (the diff shows them); `sees` is what it only asks the presence of (a program, a directory, a link). Both are
shell patterns of paths relative to the root, matched name by name: `etc/netplan/*.yaml` is no file of a deeper folder.
The directories above a path, and symbolic links in their place (`lib` to `usr/lib`), come with it. So a part of a tree
is enough to work the fix-ups out: for a disk that was copied by blocks, and for a dry run that asks the source itself.
`is_seen` and `is_read` say what belongs to that part.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from image_builders.disk.kernels import KERNEL_FILES, Kernel
from image_builders.disk.selection import Selection
from rehost.replication.tree import Change, Tree
from rehost.source.inventory import Inventory


@dataclass(frozen=True)
class Context:
    """What a fix-up may know beside the tree."""

    inventory: Inventory
    selection: Selection
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True)
class Outcome:
    """What a fix-up wants changed, and what the user should know."""

    changes: tuple[Change, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fixup:
    """One topic. They run by `order`, each on the tree that the ones before it made."""

    name: str
    order: int
    about: str  # what it changes and why, for the report
    fix: Callable[[Tree, Context], Outcome]
    reads: tuple[bytes, ...]  # patterns of the files whose content it may read
    sees: tuple[bytes, ...] = ()  # patterns of what it asks the presence of, beside these


def all_fixups() -> tuple[Fixup, ...]:
    """Every fix-up of this folder, in order."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [module.FIXUP for module in modules if hasattr(module, "FIXUP")]
    return tuple(sorted(found, key=lambda fixup: (fixup.order, fixup.name)))


@cache
def _expression(of_reads: bool) -> re.Pattern[bytes]:
    patterns = {pattern for fixup in all_fixups() for pattern in fixup.reads}
    if not of_reads:
        patterns |= {pattern for fixup in all_fixups() for pattern in fixup.sees}
        patterns |= set(KERNEL_FILES)
        # The directories above, which may be links.
        patterns |= {b"/".join(p.split(b"/")[:depth]) for p in patterns for depth in range(p.count(b"/") + 1)}
    return re.compile(b"|".join(_translated(pattern) for pattern in sorted(patterns)), re.DOTALL)


def _translated(pattern: bytes) -> bytes:
    """A pattern as a regular expression: `*` and `?` stand for no slash, `[…]` is a set."""
    parts = re.split(rb"(\*|\?|\[[^]]+\])", pattern)
    kinds = {b"*": b"[^/]*", b"?": b"[^/]"}
    return b"".join(kinds.get(part) or (part if part[:1] == b"[" else re.escape(part)) for part in parts)


def is_read(path: bytes) -> bool:
    """Whether a fix-up may read the content of that path of the tree."""
    return _expression(True).fullmatch(path) is not None


def is_seen(path: bytes) -> bool:
    """Whether that path of the tree is looked at by a fix-up, by the search for kernels, or on the way to one."""
    return _expression(False).fullmatch(path) is not None

"""Fix-ups: what has to change in a copy so that it starts on another machine.

A fix-up is a pure function from a tree and its context to a list of changes. Each topic is one file of this folder
with a `FIXUP`; a new one is a new file and nothing else.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from image_builders.disk.kernels import Kernel
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


def all_fixups() -> tuple[Fixup, ...]:
    """Every fix-up of this folder, in order."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    found = [module.FIXUP for module in modules if hasattr(module, "FIXUP")]
    return tuple(sorted(found, key=lambda fixup: (fixup.order, fixup.name)))

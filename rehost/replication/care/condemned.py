"""Packs that nobody needs any more, and that go when nobody can count on them any more.

A record under `condemned/` names packs, and the leases of those who may have been told that a chunk in them is there.
Who opens the store takes a lease first and reads the records then: either the record was there, and nothing in its
packs counts as had, or the lease was, and the record waits for it. A record that changes keeps its name: were another
put in its place, who lists the names just then could see neither.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass

from rehost.errors import StoreUnreadable
from rehost.replication.backends.interface import Backend


@dataclass(frozen=True)
class Condemnation:
    """One record."""

    id: str
    packs: frozenset[str]
    leases: frozenset[str] | None  # None: who lived after it was written is not known yet


def read(place: Backend) -> list[Condemnation]:
    """All records. Raises StoreUnreadable, OSError."""
    found = []
    for name in sorted(place.list("condemned")):
        if name.endswith(".json"):
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile, and so are its packs or their condemnation
                found.append(_read(place, name))
    return found


def _read(place: Backend, name: str) -> Condemnation:
    try:
        told = json.loads(place.read(f"condemned/{name}"))
        leases = told["leases"]
        return Condemnation(
            name.removesuffix(".json"),
            frozenset(map(str, told["packs"])),
            None if leases is None else frozenset(map(str, leases)),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StoreUnreadable(path=f"{place.shown}/condemned/{name}", reason=f"it is damaged: {error}") from error


def packs(place: Backend) -> frozenset[str]:
    """All packs that are condemned. Raises StoreUnreadable, OSError."""
    return frozenset().union(*(record.packs for record in read(place)))


def write(
    place: Backend, packs: Collection[str], leases: Collection[str] | None, id: str | None = None
) -> Condemnation:
    """Write a record durably: a new one, or what is now to be said under that id."""
    record = Condemnation(id or secrets.token_hex(16), frozenset(packs), None if leases is None else frozenset(leases))
    told = {"packs": sorted(record.packs), "leases": None if record.leases is None else sorted(record.leases)}
    place.write(f"condemned/{record.id}.json", json.dumps(told).encode() + b"\n")
    return record


def replace(place: Backend, old: Condemnation, packs: Collection[str], leases: Collection[str] | None) -> None:
    """Have a record say something else; it goes where it would name no pack."""
    if packs:
        write(place, packs, leases, old.id)
    else:
        place.delete(f"condemned/{old.id}.json")

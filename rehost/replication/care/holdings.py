"""All chunks of a store and the packs they are in, as arrays; and which of them the snapshots need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from rehost.errors import SnapshotNotFound, StoreUnreadable
from rehost.replication.backends.interface import Backend
from rehost.replication.care import condemned
from rehost.replication.pack_index import NAME, names_of, read_index
from rehost.replication.snapshot_tables import required_chunks
from rehost.replication.snapshots import Snapshots


@dataclass(frozen=True)
class Pack:
    """A pack with its index."""

    id: str
    size: int  # bytes
    age: float  # seconds since it was sealed
    condemned: bool


@dataclass
class Holdings:
    """Chunks sorted by name; of one that is stored twice the copy that counts comes first. 44 bytes a chunk."""

    packs: list[Pack]  # those that are condemned last
    names: np.ndarray  # NAME
    pack: np.ndarray  # u32: position in `packs`
    length: np.ndarray  # u32: bytes of the chunk
    stored: np.ndarray  # u32: its share of its bundle's payload, in bytes
    unreadable: dict[str, str] = field(default_factory=dict)  # packs whose index is damaged, and how
    unindexed: dict[str, float] = field(default_factory=dict)  # packs without an index, and their age in seconds
    without_pack: list[str] = field(default_factory=list)  # indexes of packs that are not there

    def counts(self) -> np.ndarray:
        """For each chunk whether it is the copy that counts."""
        first = np.ones(len(self.names), bool)
        first[1:] = self.names[1:] != self.names[:-1]
        return first

    def find(self, names: np.ndarray) -> np.ndarray:
        """The row of each of these names, of the copy that counts; -1 where there is none."""
        if not len(self.names):
            return np.full(len(names), -1, np.int64)
        at = np.minimum(self.names.searchsorted(names), len(self.names) - 1)
        return np.where(self.names[at] == names, at, -1)

    def condemned(self) -> np.ndarray:
        """For each chunk whether its pack is condemned."""
        return np.asarray(np.array([pack.condemned for pack in self.packs], bool)[self.pack])

    def by_pack(self, amounts: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The sum of some chunks' amounts for each pack, i64."""
        summed = np.bincount(self.pack[which], amounts[which].astype(np.float64), len(self.packs))
        return summed.astype(np.int64)


def read_holdings(place: Backend) -> Holdings:
    """Read all indexes. Raises StoreUnreadable, OSError; what is damaged is told in the answer."""
    marked = condemned.packs(place)
    indexes = {name.removesuffix(".parquet") for name in place.list("indexes") if name.endswith(".parquet")}
    # After the indexes: a pack comes before its index, so one that is listed without a pack has lost it.
    sizes = {name.removesuffix(".pack"): size for name, size in place.list("packs").items() if name.endswith(".pack")}
    ages = {name.removesuffix(".pack"): age for name, age in place.ages("packs").items()}
    none = np.empty(0, np.uint32)
    found = Holdings([], np.empty(0, NAME), none, none, none)
    found.without_pack = sorted(indexes - sizes.keys() - marked)
    found.unindexed = {id: ages.get(id, 0.0) for id in sorted(sizes.keys() - indexes - marked)}
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for id in sorted(indexes & sizes.keys(), key=lambda id: (id in marked, id)):
        try:
            table = read_index(place.fetch(f"indexes/{id}.parquet").read_bytes(), sizes[id])
        except FileNotFoundError:
            continue  # gone meanwhile
        except ValueError as error:
            found.unreadable[id] = str(error)
            continue
        length, raw = table["length"].to_numpy(), table["raw_length"].to_numpy()
        share = table["stored_length"].to_numpy().astype(np.float64) * length / np.maximum(raw, 1)
        columns[0].append(names_of(table["sha256"]).copy())
        columns[1].append(np.full(len(length), len(found.packs), np.uint32))
        columns[2].append(length)
        columns[3].append(np.ceil(share).astype(np.uint32))
        found.packs.append(Pack(id, sizes[id], ages.get(id, 0.0), id in marked))
    if found.packs:
        pa.default_memory_pool().release_unused()
        names = np.concatenate(columns[0])
        columns[0].clear()
        order = names.argsort(kind="stable")
        found.names = names[order]
        del names
        found.pack, found.length, found.stored = (np.concatenate(column)[order] for column in columns[1:])
    return found


def each_names(snapshots: Snapshots, id: str, take: Callable[[np.ndarray], None]) -> None:
    """Call `take` with the names that a snapshot needs, some at a time; nothing for one that is gone meanwhile.

    Raises StoreUnreadable, StoreIOFailed.
    """
    for kind in snapshots.kinds(id):
        try:
            path = snapshots.table_path(id, kind)
        except SnapshotNotFound:
            continue
        try:
            required_chunks(path, take)
        except FileNotFoundError:
            continue
        except (pa.ArrowException, OSError, KeyError) as error:
            raise StoreUnreadable(path=path, reason=f"the table is damaged: {error}") from error


@dataclass
class Needed:
    """Which chunks the snapshots need."""

    rows: np.ndarray  # bool, for each chunk of the holdings
    missing: int  # how often one is needed that the store has not


def needed(place: Backend, holdings: Holdings) -> Needed:
    """Look through all snapshots. Raises StoreUnreadable for one that cannot be read: what it needs is not known."""
    snapshots = Snapshots(place)
    answer = Needed(np.zeros(len(holdings.names), bool), 0)

    def take(names: np.ndarray) -> None:
        at = holdings.find(names)
        answer.rows[at[at >= 0]] = True
        answer.missing += int((at < 0).sum())

    for id in snapshots.ids():
        each_names(snapshots, id, take)
    return answer


def ids_of_sources(snapshots: Snapshots) -> Iterator[tuple[str, list[str]]]:
    """The snapshots of each source."""
    found: dict[str, list[str]] = {}
    for id in snapshots.ids():
        found.setdefault(snapshots.load(id).source_id, []).append(id)
    yield from sorted(found.items())

"""What a store holds, in figures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.replication.backends.interface import Backend
from rehost.replication.care.holdings import each_names, ids_of_sources, read_holdings
from rehost.replication.packs import storage_error
from rehost.replication.snapshots import Snapshots

_ROWS = 65_536


@dataclass(frozen=True)
class SourceShare:
    """What the snapshots of one source need. Bytes are of content, before compression, each chunk once."""

    source_id: str
    snapshots: int
    bytes_own: int  # needed by no other source
    bytes_shared: int


@dataclass(frozen=True)
class Stat:
    """A store. Sizes in bytes; ratios are None where there is nothing to compare."""

    snapshots: int
    sources: int
    packs: int
    chunks: int  # one that is stored twice counts twice
    stored_bytes: int  # all packs
    raw_bytes: int  # the content of all chunks
    live_bytes: int  # of the packs, what snapshots need
    live_share: float | None  # of the packs
    condemned_packs: int
    condemned_bytes: int
    content_bytes: int  # of all snapshots, as often as they need it
    compression_ratio: float | None  # raw_bytes / stored_bytes
    dedup_ratio: float | None  # content_bytes / the content that is kept for it
    missing_chunks: int  # that snapshots need and nobody has: `rehost store check` tells where
    damaged_indexes: int  # and what only they tell of is not in these figures
    by_source: tuple[SourceShare, ...]


def stat(place: Backend) -> Stat:
    """Count. Raises StoreUnreadable, StoreIOFailed."""
    try:
        return _stat(place)
    except OSError as error:
        raise storage_error(error, place.shown) from error


def _stat(place: Backend) -> Stat:
    snapshots = Snapshots(place)
    sources = list(ids_of_sources(snapshots))  # before the holdings: what they need was indexed before them
    holdings = read_holdings(place)
    shared = np.iinfo(np.uint32).max
    owner = np.zeros(len(holdings.names), np.uint32)  # the number of the only source that needs it, or `shared`
    missing = content = count = 0
    for number, (_, ids) in enumerate(sources, 1):

        def take(names: np.ndarray, number: int = number) -> None:
            nonlocal missing
            at = holdings.find(names)
            missing += int((at < 0).sum())
            at = at[at >= 0]
            owner[at] = np.where((owner[at] == 0) | (owner[at] == number), number, shared)

        for id in ids:
            each_names(snapshots, id, take)
            content += _content(snapshots, id)
            count += 1
    live, length = owner > 0, holdings.length.astype(np.int64)
    together = np.zeros(len(sources) + 1, np.int64)  # of what is shared, which source needs how much
    for number, (_, ids) in enumerate(sources, 1):
        mine = np.zeros(len(owner), bool)

        def mark(names: np.ndarray, mine: np.ndarray = mine) -> None:
            at = holdings.find(names)
            mine[at[at >= 0]] = True

        for id in ids if (owner == shared).any() else ():
            each_names(snapshots, id, mark)
        together[number] = length[mine & (owner == shared)].sum()
    stored, raw, kept = sum(p.size for p in holdings.packs), int(length.sum()), int(length[live].sum())
    live_bytes = int(holdings.stored[live].sum(dtype=np.int64))
    return Stat(
        snapshots=count,
        sources=len(sources),
        packs=len(holdings.packs),
        chunks=len(holdings.names),
        stored_bytes=stored,
        raw_bytes=raw,
        live_bytes=live_bytes,
        live_share=_ratio(live_bytes, stored),
        condemned_packs=sum(pack.condemned for pack in holdings.packs),
        condemned_bytes=sum(pack.size for pack in holdings.packs if pack.condemned),
        content_bytes=content,
        compression_ratio=_ratio(raw, stored),
        dedup_ratio=_ratio(content, kept),
        missing_chunks=missing,
        damaged_indexes=len(holdings.unreadable),
        by_source=tuple(
            SourceShare(id, len(ids), int(length[owner == number].sum()), int(together[number]))
            for number, (id, ids) in enumerate(sources, 1)
        ),
    )


def _ratio(above: int, below: int) -> float | None:
    return round(above / below, 3) if below else None


def _content(snapshots: Snapshots, id: str) -> int:
    """The content that the tables of a snapshot name, as often as they do."""
    total = 0
    described = snapshots.load(id)
    for kind in snapshots.kinds(id):
        with pq.ParquetFile(snapshots.table_path(id, kind)) as file:
            for batch in file.iter_batches(_ROWS, columns=["chunks" if kind == "files" else "region"]):
                if kind == "files":
                    lengths = pc.struct_field(batch["chunks"].flatten(), "length")
                    total += int(pc.sum(lengths).as_py() or 0)
                else:
                    blocks = np.bincount(batch["region"].to_numpy(), minlength=len(described.regions))
                    total += sum(int(n) * r.block_bytes for n, r in zip(blocks, described.regions, strict=True))
    return total

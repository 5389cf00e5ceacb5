"""What no snapshot needs leaves the store, whatever runs beside it and whenever it is killed.

In two steps. Packs without a needed chunk are condemned: from then on nobody who opens the store is told that what is
in them is there. Packs that are needed in part, and small ones, are written anew before. A condemned pack is deleted
once all are gone who opened the store before, and only if no snapshot that they published needs it after all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rehost.replication.backends.interface import Backend
from rehost.replication.backends.leases import Lease
from rehost.replication.care import condemned
from rehost.replication.care.alone import alone, still_held, users
from rehost.replication.care.holdings import Holdings, Needed, needed, read_holdings
from rehost.replication.care.rewriting import Rewriter, copy_records, opened, records_of
from rehost.replication.pack_index import NAME
from rehost.replication.packs import PACK_BYTES, Record, storage_error

GRACE_SECONDS = 24 * 3600.0  # what arrived of a broken transfer waits so long for its next run
_LIVE_SHARE = 0.5  # a pack of which less is needed is written anew
_SMALL_BYTES = PACK_BYTES // 4
_SMALL_PACKS = 8  # as many small packs are joined


@dataclass(frozen=True)
class Collected:
    """What a collection did, or would do. Sizes in bytes of packs."""

    dry_run: bool
    packs_condemned: int  # nothing in them is needed, or what is has been written anew
    bytes_condemned: int
    packs_rewritten: int  # of those
    bytes_rewritten: int  # of the new packs
    packs_deleted: int
    bytes_deleted: int
    packs_rescued: int  # condemned before, and needed by a snapshot that was published since
    packs_waiting: int  # condemned, and somebody who opened the store before is still there
    bytes_waiting: int
    packs_damaged: tuple[str, ...]  # left as they are: `check --read-data` heals them

    @property
    def idle(self) -> bool:
        """There was nothing to do, and nothing waits."""
        return not (self.packs_condemned or self.packs_deleted or self.packs_rescued or self.packs_waiting)


@dataclass(frozen=True)
class Choice:
    """Packs by their position in the holdings."""

    dead: np.ndarray
    rewritten: np.ndarray


def choose(holdings: Holdings, live: np.ndarray, grace_seconds: float) -> Choice:
    """Which packs nobody needs, and which are to be written anew; `live` tells the needed chunks, one copy of each."""
    sizes = np.array([pack.size for pack in holdings.packs], np.int64)
    old = np.array([pack.age >= grace_seconds and not pack.condemned for pack in holdings.packs], bool)
    count = len(holdings.packs)
    alive = np.bincount(holdings.pack[live], minlength=count) > 0
    stored = holdings.by_pack(holdings.stored, np.ones(len(holdings.names), bool))
    share = holdings.by_pack(holdings.stored, live) / np.maximum(stored, 1)
    sparse = old & alive & (share < _LIVE_SHARE)
    small = old & alive & (sizes < _SMALL_BYTES)
    if small.sum() < _SMALL_PACKS:
        small[:] = False
    return Choice(np.flatnonzero(old & ~alive), np.flatnonzero(sparse | small))


def collect(place: Backend, *, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False) -> Collected:
    """Collect once. Packs younger than the grace stay as they are.

    Raises StoreBusy, StoreLeaseLost, StoreUnreadable where a snapshot cannot be read (then nothing is deleted),
    StoreNoSpace, StoreIOFailed. What was begun stays sound and is gone on with by the next.
    """
    try:
        with alone(place) as lease:
            return _collect(place, lease, grace_seconds, dry_run)
    except OSError as error:
        raise storage_error(error, place.shown) from error


def _collect(place: Backend, lease: Lease, grace_seconds: float, dry_run: bool) -> Collected:
    holdings = read_holdings(place)
    live = _live(holdings, needed(place, holdings))
    choice = choose(holdings, live, grace_seconds)
    rewriter = Rewriter(place)
    rewritten: list[int] = []
    damaged: list[int] = []
    if not dry_run:
        for number in choice.rewritten.tolist():
            still_held(place, lease)
            (rewritten if _rewrite(place, rewriter, holdings, live, number) else damaged).append(number)
        rewriter.finish()
    else:
        rewritten = choice.rewritten.tolist()
    going = [holdings.packs[number] for number in [*choice.dead.tolist(), *rewritten]]
    ids = [holdings.packs[number].id for number in damaged]
    del holdings, live
    if not dry_run:
        still_held(place, lease)
        if going:
            condemned.write(place, [pack.id for pack in going], None)
        for record in condemned.read(place):
            if record.leases is None:
                # Looked for after the record was durable: who is not seen here sees the record.
                condemned.replace(place, record, record.packs, users(place))
    swept = _sweep(place, lease, dry_run)
    return Collected(
        dry_run=dry_run,
        packs_condemned=len(going),
        bytes_condemned=sum(pack.size for pack in going),
        packs_rewritten=len(rewritten),
        bytes_rewritten=rewriter.bytes_written,
        packs_deleted=swept.deleted,
        bytes_deleted=swept.bytes_deleted,
        packs_rescued=swept.rescued,
        packs_waiting=swept.waiting,
        bytes_waiting=swept.bytes_waiting,
        packs_damaged=tuple(ids),
    )


def _live(holdings: Holdings, found: Needed) -> np.ndarray:
    return np.asarray(found.rows & holdings.counts())


def _rewrite(place: Backend, rewriter: Rewriter, holdings: Holdings, live: np.ndarray, number: int) -> bool:
    """Copy what is needed of a pack; False where something of that is damaged, which a check tells and heals."""
    wanted = holdings.names[(holdings.pack == number) & live]  # sorted
    copied = np.zeros(len(wanted), bool)

    def keep(record: Record) -> np.ndarray:
        names = np.frombuffer(record.names, NAME)
        at = np.minimum(wanted.searchsorted(names), len(wanted) - 1)
        chosen = (wanted[at] == names) & ~copied[at]
        _, first = np.unique(names, return_index=True)
        chosen &= np.isin(np.arange(len(names)), first)
        if record.sound is not None:
            chosen &= record.sound
        copied[at[chosen]] = True
        return np.asarray(chosen)

    with opened(place, holdings.packs[number].id) as (fd, size):
        records = records_of(fd, size)
        sound = [np.frombuffer(r.names, NAME)[slice(None) if r.sound is None else r.sound] for r in records]
        if not np.isin(wanted, np.concatenate([*sound, np.empty(0, NAME)])).all():
            return False
        copy_records(rewriter, fd, records, keep)
    # One that is sound only where a record has it a second time is left to the check.
    return bool(copied.all())


@dataclass
class _Swept:
    deleted: int = 0
    bytes_deleted: int = 0
    rescued: int = 0
    waiting: int = 0
    bytes_waiting: int = 0


def _sweep(place: Backend, lease: Lease, dry_run: bool) -> _Swept:
    """Delete the condemned packs that nobody can count on, and let those go free that a snapshot needs."""
    answer = _Swept()
    records = condemned.read(place)
    if not records:
        return answer
    alive = users(place)
    # After the leases: whoever is gone has published what it had to.
    holdings = read_holdings(place)
    live = _live(holdings, needed(place, holdings))
    saved = {holdings.packs[n].id for n in np.unique(holdings.pack[live]).tolist() if holdings.packs[n].condemned}
    sizes = {pack.id: pack.size for pack in holdings.packs}
    for record in records:
        rescued, others = record.packs & saved, record.packs - saved
        answer.rescued += len(rescued)
        unknown = others & holdings.unreadable.keys()  # what is in them is known once a check has healed them
        if record.leases is None or record.leases & alive:
            answer.waiting += len(others)
            answer.bytes_waiting += sum(sizes.get(id, 0) for id in others)
            left = others
        else:
            others -= unknown
            answer.deleted += len(others)
            answer.bytes_deleted += sum(sizes.get(id, 0) for id in others)
            for id in sorted(others) if not dry_run else ():
                still_held(place, lease)
                # The pack first: its index alone tells nobody that anything is there.
                place.delete(f"packs/{id}.pack")
                place.delete(f"indexes/{id}.parquet")
            left = unknown
        if not dry_run and left != record.packs:
            condemned.replace(place, record, left, record.leases)
    return answer

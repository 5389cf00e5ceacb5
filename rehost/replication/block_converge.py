"""A block copy of a server that goes on writing: passes over what changed, the last one while it holds still."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from rehost.errors import SourceError
from rehost.progress import Progress
from rehost.replication.block_index import BlockIndex
from rehost.replication.block_transfer import EVERYTHING, BlockCopy, BlockReport, Runs, transfer_blocks
from rehost.replication.store import Store
from rehost.source.block_session import Area, BlockSession, DeviceState, UsedBlocks, blocks_of, runs_of
from rehost.source.hold_errors import SnapshotFreezeLost

STILL_SECONDS = 8.0  # that the last pass may take: the source lets go after ten
_SMALL_BYTES = 64 << 20  # a pass that moved less is the last before the freeze
_PASSES = 5  # before the freeze
_LITTLE_BYTES = 16 << 20  # so much is tried: of small passes that took long, little of the time was for reading


class NotConverging(SourceError):
    """{device} changes faster than it can be copied: {reason}."""

    code = "Snapshot.NotConverging"
    remedy = (
        "Put it on LVM with free space for a snapshot, switch change tracking on, take it by files, or sync in a "
        "quieter hour; then start the job again."
    )
    retryable = True


class Frozen(Protocol):
    """A freeze under way."""

    def ended(self) -> bool:
        """Whether the source let go before it was told to. Asked after the last pass, while it should still hold."""
        ...


Written = Callable[[], Mapping[Area, Runs] | None]
"""What was written to each area since it was last asked; None where that is not known: all may have been."""


@dataclass(frozen=True)
class Converged:
    """The copy of the last pass, and what every pass did."""

    copy: BlockCopy
    passes: tuple[BlockReport, ...]


def converge(
    session: BlockSession,
    store: Store,
    areas: Sequence[Area],
    directory: Path,
    *,
    parent: BlockIndex | None,
    freeze: Callable[[], AbstractContextManager[Frozen]],
    written: Written | None,
    only: Mapping[Area, Runs | None] = EVERYTHING,
    still_seconds: float = STILL_SECONDS,
    progress: Progress,
) -> Converged:
    """Copy areas that are written to meanwhile, so that the copy is of one moment.

    The first pass is over all that is in use, or `only`; further ones over what was written since the pass before
    began, until one moves little. The last is made inside `freeze()`. `written` is asked as each pass begins, so it
    must have watched since before this function was called; without it every pass reads everything again. Raises
    NotConverging where the last pass would take longer than the source may hold still, or did (`freeze` may also
    tell of that by SnapshotFreezeLost on its way out), and what transfer_blocks and `freeze` raise. Of a pass whose
    freeze ended early nothing is used.
    """
    live: dict[Area, DeviceState] = {area: "live" if area.mount_point is not None else "off" for area in areas}
    reports: list[BlockReport] = []
    index = parent
    for number in range(_PASSES):
        since = written() if written is not None else None
        choice = _only(areas, since) if number else _joined(only, since, written is not None)
        copy = transfer_blocks(
            session,
            store,
            areas,
            directory / f"blocks-{number}.parquet",
            parent=index,
            state=live.__getitem__,
            only=choice,
            progress=progress if not number else _after(progress),
        )
        reports.append(copy.report)
        index = copy.index
        # Without a record of what was written a further pass costs as much as the first, and saves the last nothing.
        if written is None or copy.report.bytes_changed < _SMALL_BYTES:
            break
    rate = _rate(reports)
    shown = ", ".join(sorted({area.path for area in areas}))

    def allow(maps: Mapping[Area, UsedBlocks], expected: int) -> None:
        if expected > _LITTLE_BYTES and expected / rate > still_seconds:
            reason = f"the last pass would read {expected >> 20} MiB, {expected / rate:.0f} s while it is frozen"
            raise NotConverging(device=shown, reason=reason)

    if written is None:
        allow({}, sum(report.used_bytes for report in reports[-1].areas))
    try:
        with ExitStack() as stack:
            frozen = stack.enter_context(freeze())

            def thaw() -> None:
                """Let the source go on as soon as it was read: the store takes what came without it."""
                if frozen.ended():
                    raise NotConverging(device=shown, reason="the freeze ended before the last pass did")
                stack.close()

            copy = transfer_blocks(
                session,
                store,
                areas,
                directory / "blocks.parquet",
                parent=index,
                state=lambda area: "still" if area.mount_point is not None else "off",
                only=_only(areas, written() if written is not None else None),
                allow=allow,
                all_read=thaw,
                progress=_after(progress),
            )
    except SnapshotFreezeLost as error:
        reason = f"the freeze ended after {error.facts.get('seconds')} s, before the last pass did"
        raise NotConverging(device=shown, reason=reason) from error
    return Converged(copy, (*reports, copy.report))


def _only(areas: Sequence[Area], since: Mapping[Area, Runs] | None) -> Mapping[Area, Runs | None]:
    """What a pass reads: what was written, or without knowing that, everything."""
    return EVERYTHING if since is None else {area: since.get(area) for area in areas}


def _joined(
    only: Mapping[Area, Runs | None], since: Mapping[Area, Runs] | None, watched: bool
) -> Mapping[Area, Runs | None]:
    """What the first pass reads: `only`, and what was written since that was found out."""
    if not watched:
        return only
    joined: dict[Area, Runs | None] = {}
    for area, runs in only.items():
        more = since.get(area) if since is not None else None
        if runs is not None and more is not None:
            joined[area] = runs_of(np.union1d(blocks_of(runs), blocks_of(more)))
    return joined


def _rate(reports: Sequence[BlockReport]) -> float:
    """Bytes a second of the pass that read most."""
    most = max(reports, key=lambda report: report.bytes_read)
    return max(1.0, most.bytes_read) / max(0.001, most.reading_seconds)


def _after(progress: Progress) -> Progress:
    """Progress that only tells that work goes on: a further pass does not go back to the start."""

    def told(done: int, total: int, note: str = "") -> None:
        progress(0, 0, "reading what changed meanwhile")

    return told

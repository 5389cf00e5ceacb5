"""The part of a pass that goes over blocks: the disks whose layout is kept, as the plan of the pass has them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from rehost.progress import Progress
from rehost.replication.block_converge import Frozen, Written, converge
from rehost.replication.block_transfer import EVERYTHING, BlockCopy, BlockReport, Runs, parent_index, transfer_blocks
from rehost.replication.pass_plan import PassPlan, with_places
from rehost.replication.snapshots import VolumeConsistency
from rehost.replication.store import Store
from rehost.source.agent_session import AgentSession
from rehost.source.block_open import open_blocks
from rehost.source.block_session import Area, areas
from rehost.source.disk_session import DiskSession
from rehost.source.hold import Hooks, freeze
from rehost.source.inventory import Inventory, Volume
from rehost.source.layers import devices_under
from rehost.source.session import Session
from rehost.source.tracked_pass import TrackedPass

# What implements freeze_fs or freeze_super in Linux 6.1; FIFREEZE answers EOPNOTSUPP to the others, vfat among them.
_FREEZABLE = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "jfs", "reiserfs", "nilfs2", "gfs2")
_OFFLINE = "the source is not running"


@dataclass(frozen=True)
class CopiedBlocks:
    """What became of the disks that are copied block by block."""

    copy: BlockCopy
    passes: tuple[BlockReport, ...]  # of a server that goes on writing there are several
    consistency: tuple[VolumeConsistency, ...]

    @property
    def bytes_read(self) -> int:
        """Read on the source, in all passes."""
        return sum(report.bytes_read for report in self.passes)

    @property
    def bytes_new(self) -> int:
        """Content of chunks that the store did not have, before its compression."""
        return sum(report.bytes_new for report in self.passes)


def areas_of(inventory: Inventory, plan: PassPlan, *, file: bool) -> tuple[Area, ...]:
    """The areas of the plan's disks that are copied; each with a mount point where a volume on it is in use.

    A volume may lie on several areas, and several on one (LVM): one name of them is enough to know that it is live.
    """
    live = {path: v.mount_point for v in reversed(plan.in_blocks) for path in devices_under(v.device, inventory)}
    by_device = {p.device: p.path for disk in inventory.disks for p in disk.partitions}
    found = []
    for disk in inventory.disks:
        for area in areas(disk, file=file) if disk.index in plan.disks else ():
            if area.device is not None and area.device not in plan.partitions:
                continue
            mount_point = live.get(by_device[area.device]) if area.device is not None else None
            found.append(replace(area, mount_point=mount_point))
    return tuple(found)


def copy_blocks(
    session: Session,
    store: Store,
    inventory: Inventory,
    plan: PassPlan,
    directory: Path,
    *,
    parent_id: str | None,
    tracked: TrackedPass | None = None,
    hooks: Hooks | None = None,
    progress: Progress,
) -> CopiedBlocks:
    """Copy the disks of the plan block by block; their table is written into `directory`.

    A running server is copied while it writes, and its filesystems are frozen for a last, short pass (at most ten
    seconds, see docs/consistency.md), so that the copy is of one moment. `tracked` tells what was written since the
    parent and meanwhile, so that only that is read. Raises NotConverging, SnapshotFreezeFailed, SnapshotFreezeLost,
    and what the session and the store raise.
    """
    chosen = areas_of(inventory, plan, file=isinstance(session, DiskSession))
    parent = parent_index(store, parent_id)
    blocks = open_blocks(session)
    if not isinstance(session, AgentSession) or not plan.in_blocks:
        copy = transfer_blocks(
            blocks,
            store,
            chosen,
            directory / "blocks.parquet",
            parent=parent,
            state=lambda area: "off",
            progress=progress,
        )
        at_rest = [
            VolumeConsistency(mount_point=v.mount_point, method="offline", detail=_OFFLINE) for v in plan.in_blocks
        ]
        return CopiedBlocks(copy, (copy.report,), tuple(at_rest))

    points = freezable(plan.in_blocks)
    only: Mapping[Area, Runs | None] = EVERYTHING
    written: Written | None = None
    if tracked is not None and tracked.works:
        only, written = tracked.since_parent(chosen), functools.partial(tracked.since_last, chosen)

    waited: list[float] = []

    @contextlib.contextmanager
    def still() -> Iterator[Frozen]:
        # A freeze that ended early is told when it is let go: then nothing of the last pass is used.
        with freeze(session, points, hooks=hooks) if points else contextlib.nullcontext(None) as frozen:
            yield _Holds()
        if frozen is not None:
            waited.append(frozen.seconds)

    done = converge(
        blocks,
        store,
        chosen,
        directory,
        parent=parent,
        freeze=still,
        written=written,
        only=only,
        progress=progress,
    )
    told = tuple(_consistency(volume, len(done.passes), sum(waited)) for volume in plan.in_blocks)
    return CopiedBlocks(done.copy, done.passes, told)


def freezable(volumes: Sequence[Volume]) -> list[str]:
    """Mount points to freeze: one of each filesystem that Linux can freeze. A second freeze of one is refused there."""
    by_device = {v.device or v.mount_point: v.mount_point for v in reversed(volumes) if v.filesystem in _FREEZABLE}
    return sorted(by_device.values())


def _consistency(volume: Volume, passes: int, seconds: float) -> VolumeConsistency:
    if volume.filesystem in _FREEZABLE:
        detail = f"frozen for {seconds:.1f} s, for the last of {passes} passes"
        return VolumeConsistency(mount_point=volume.mount_point, method="freeze", detail=detail)
    detail = f"{volume.filesystem} cannot be frozen"
    return VolumeConsistency(mount_point=volume.mount_point, method="live", detail=detail)


class _Holds:
    """A freeze whose own end tells whether it held."""

    def ended(self) -> bool:
        return False


class FilesBeside:
    """A session whose scan has every directory that a manifest must have, also above volumes that are in blocks."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def scan(self, volumes: Sequence[Volume], exclude: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """As the session's own, for volumes without the root, or none at all."""
        return with_places(self._session.scan(volumes, exclude) if volumes else (), volumes)

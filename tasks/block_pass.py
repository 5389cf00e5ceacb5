"""The part of the transfer stage that goes over blocks, where a job asks for some."""

from __future__ import annotations

from prefect.logging import get_run_logger

from rehost.replication.block_pass import CopiedBlocks, copy_blocks
from rehost.replication.store import Store
from rehost.source.agent_session import AgentSession
from rehost.source.tracked_pass import TrackedPass
from tasks.holding import Holding
from tasks.run_pass import Pass, add_notes

_FULL = "All blocks in use were read, as it is not known which were written: {reason}."


def tracked_pass(this: Pass, holding: Holding, parent_id: str | None) -> TrackedPass | None:
    """The tracker of the disks that the job wants in blocks, of a running server; started before anything is read.

    It stays on the server where the job asks for change tracking, and else goes with the session.
    """
    if not isinstance(holding.session, AgentSession) or not holding.plan.in_blocks:
        return None
    disks = [disk for disk in holding.inventory.disks if disk.index in holding.plan.disks]
    return TrackedPass(holding.session, this.job.id if this.job.disks.change_tracking else None, disks, parent_id)


def blocks_of_pass(
    this: Pass,
    holding: Holding,
    store: Store,
    parent_id: str | None,
    tracked: TrackedPass | None,
) -> CopiedBlocks:
    """Copy the disks that the job wants in blocks, and say in the log how each area went.

    Raises every SourceError and StoreError.
    """
    progress = this.progress("transfer-blocks")
    copied = copy_blocks(
        holding.session,
        store,
        holding.inventory,
        holding.plan,
        this.workspace,
        parent_id=parent_id,
        tracked=tracked,
        hooks=holding.hooks,
        progress=progress,
    )
    progress.finish()
    log = get_run_logger()
    for area in copied.copy.report.areas:
        if area.area.device is not None:
            log.info(
                "partition %s: %s bytes in use (%s%s), %s bytes read, %s bytes changed",
                area.area.device,
                f"{area.used_bytes:,}",
                area.rule,
                f": {area.reason}" if area.reason else "",
                f"{area.bytes_read:,}",
                f"{area.bytes_changed:,}",
            )
    if tracked is not None and this.job.disks.change_tracking:
        told = [_FULL.format(reason=reason) for reason in dict.fromkeys(tracked.reasons)]
        for sentence in told:
            log.warning("%s", sentence)
        add_notes(this, told)
    for volume in copied.consistency:
        log.info("%s: %s, %s", volume.mount_point, volume.method, volume.detail)
    return copied

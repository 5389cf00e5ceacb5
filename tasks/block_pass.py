"""The part of the transfer stage that goes over blocks, where a job asks for some."""

from __future__ import annotations

from prefect.logging import get_run_logger

from rehost.progress import Progress
from rehost.replication.block_pass import CopiedBlocks, copy_blocks
from rehost.replication.store import Store
from tasks.holding import Holding
from tasks.run_pass import Pass


def blocks_of_pass(
    this: Pass, holding: Holding, store: Store, parent_id: str | None, progress: Progress
) -> CopiedBlocks:
    """Copy the disks that the job wants in blocks, and say in the log how each area went.

    Raises every SourceError and StoreError.
    """
    copied = copy_blocks(
        holding.session,
        store,
        holding.inventory,
        holding.plan,
        this.workspace,
        parent_id=parent_id,
        hooks=holding.hooks,
        progress=progress,
    )
    log = get_run_logger()
    for area in copied.copy.report.areas:
        if area.area.device is not None:
            log.info(
                "partition %s: %d bytes in use (%s%s), %d bytes read, %d bytes changed",
                area.area.device,
                area.used_bytes,
                area.rule,
                f": {area.reason}" if area.reason else "",
                area.bytes_read,
                area.bytes_changed,
            )
    for volume in copied.consistency:
        log.info("%s: %s, %s", volume.mount_point, volume.method, volume.detail)
    return copied

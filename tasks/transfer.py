"""The transfer stage: what the store lacks is sent, and the snapshot is complete."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from rehost.catalog.records import Figures
from rehost.errors import SourceError
from rehost.ids import new_id
from rehost.replication.open_store import open_store
from rehost.replication.snapshots import Snapshot
from rehost.replication.transfer import TransferReport, transfer as transfer_content
from rehost.settings import settings
from tasks.block_pass import blocks_of_pass, tracked_pass
from tasks.holding import Holding
from tasks.retries import STAGE
from tasks.run_pass import Pass, bytes_on_wire, catalog, notes
from tasks.snapshot import walk


@task(name="transfer", **STAGE)
def transfer(this: Pass, table: Path, holding: Holding) -> tuple[str, TransferReport]:
    """Fill the store with what the source has and it has not; the id of the snapshot, and what was moved.

    What arrived before an error stays, and is not sent again. The hold is closed afterwards in every case; another
    try holds the source anew. Raises every SourceError and StoreError.
    """
    try:
        if not holding.is_open:
            holding.open()
            if holding.of_one_moment:
                table = walk(this, holding)
        return _transfer(this, table, holding)
    finally:
        holding.close()


def _transfer(this: Pass, table: Path, holding: Holding) -> tuple[str, TransferReport]:
    replication = this.job.replication
    with catalog() as opened:
        parent = opened.latest_snapshot(this.source.id)
    begun = Snapshot(
        id=new_id("n"),
        source_id=this.source.id,
        parent_id=parent,
        created_at=datetime.now(UTC),
        inventory=holding.inventory,
        volumes=holding.plan.volumes,
        consistency=holding.consistency,
        exclude=this.job.exclude,
    )
    with open_store(settings(), compress_level=replication.compress_level) as store:
        tracked = tracked_pass(this, holding, parent) if holding.plan.disks else None
        copied = blocks_of_pass(this, holding, store, parent, tracked) if holding.plan.disks else None
        progress = this.progress("transfer")
        if copied is not None:
            more = {"regions": copied.copy.regions, "consistency": (*begun.consistency, *copied.consistency)}
            begun = begun.model_copy(update=more)
            holding.consistency = begun.consistency
        if tracked is not None:
            tracked.prepare(begun.id)
        taken, report = transfer_content(
            holding.session,
            store,
            table,
            snapshot=begun,
            parent_id=parent,
            checksum=replication.checksum,
            progress=progress,
            blocks=copied.copy.path if copied is not None else None,
        )
        try:
            holding.release()
        except SourceError:
            store.delete_snapshot(taken.id)  # whether it is of one moment is not known, or it is known not to be
            raise
        if tracked is not None:
            tracked.commit(taken.id)
    holding.close()
    report = replace(report, bytes_on_wire=bytes_on_wire(this))
    if copied is not None:
        read, new = report.bytes_scanned + copied.bytes_read, report.bytes_new + copied.bytes_new
        report = replace(report, bytes_scanned=read, bytes_new=new)
    with catalog() as opened:
        opened.record_snapshot(
            this.run.id,
            taken.id,
            Figures(
                files_total=report.files_total,
                files_changed=report.files_changed,
                bytes_scanned=report.bytes_scanned,
                bytes_new=report.bytes_new,
                bytes_on_wire=report.bytes_on_wire,
            ),
        )
    progress.finish()
    log = get_run_logger()
    log.info(
        f"{report.files_changed:,} of {report.files_total:,} files were read, {report.bytes_new:,} bytes are new, "
        f"{report.bytes_on_wire:,} bytes came over the wire"
    )
    log.info("all of it is safe in the store as the snapshot %s; from here on the source is not asked again", taken.id)
    for note in notes(this):
        log.info("%s", note)
    for names, told in (
        (report.unstable, "kept changing while they were read; the last reading was taken"),
        (report.vanished, "vanished before they were read"),
        (report.unreadable, "could not be read"),
    ):
        if names:
            log.warning("%d files %s: %s", len(names), told, ", ".join(names[:20]))
    return taken.id, report

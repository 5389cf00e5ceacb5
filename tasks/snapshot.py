"""The snapshot stage: every name on the source, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pyarrow.parquet as pq
from prefect import task
from prefect.logging import get_run_logger

from rehost.replication.block_pass import FilesBeside
from rehost.replication.transfer import scan
from rehost.source.session import Session
from tasks.holding import Holding
from tasks.retries import STAGE
from tasks.run_pass import Pass, catalog


@task(name="snapshot", **STAGE)
def snapshot(this: Pass) -> tuple[Path, Holding]:
    """Hold the source, walk it and write the files table, without content yet.

    The path of the table, and the hold, which `transfer` closes. Raises HookFailed and every SourceError.
    """
    with catalog() as opened:
        inventory = opened.source(this.source.id).inventory
    holding = Holding(this, inventory)
    holding.open()
    try:
        table = walk(this, holding)
    except BaseException:
        holding.close()
        raise
    get_run_logger().info("%s names were found on the source", f"{pq.read_metadata(table).num_rows:,}")
    return table, holding


def walk(this: Pass, holding: Holding) -> Path:
    """Write the files table of the source as it is held; its path. Volumes that are copied by blocks are not walked."""
    progress = this.progress("snapshot")
    plan = holding.plan
    session = cast(Session, FilesBeside(holding.session)) if plan.in_blocks else holding.session
    inventory = holding.inventory.model_copy(update={"volumes": plan.volumes})
    table = scan(session, inventory, this.job.exclude, this.workspace, progress)
    progress.finish()
    return table

"""The snapshot stage: every name on the source, and what is said of it."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from rehost.replication.transfer import scan
from tasks.retries import STAGE
from tasks.run_pass import Pass, catalog, source_session


@task(name="snapshot", **STAGE)
def snapshot(this: Pass) -> Path:
    """Walk the source and write the files table, without content yet; the path of the table.

    Raises every SourceError.
    """
    with catalog() as opened:
        inventory = opened.source(this.source.id).inventory
    progress = this.progress("snapshot")
    with source_session(this) as session:
        table = scan(session, inventory, this.job.exclude, this.workspace, progress)
    progress.finish()
    get_run_logger().info("the files table is complete: %s", table.name)
    return table

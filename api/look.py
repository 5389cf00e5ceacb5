"""A walk over a source for a plan. The one thing that a dry run does on a server, and only where it is asked to."""

from __future__ import annotations

import contextlib
from pathlib import Path

from rehost.catalog.bandwidth import limit_at
from rehost.catalog.catalog import Catalog
from rehost.catalog.database import now
from rehost.catalog.plan import Plan, surveyed
from rehost.errors import SnapshotNotFound
from rehost.replication.open_store import open_store
from rehost.replication.survey import survey
from rehost.settings import Settings
from rehost.source.connect import open_session

WALK_SECONDS = 300.0


def with_survey(plan: Plan, catalog: Catalog, settings: Settings) -> Plan:
    """The plan with what a walk over its source found, compared with the newest snapshot of that source.

    Takes five minutes at most, and what connecting takes. Raises every SourceError.
    """
    source = catalog.source(plan.source_id)
    newest = catalog.latest_snapshot(source.id)
    replication = plan.spec.replication
    limit = limit_at(replication, now())
    with contextlib.ExitStack() as stack:
        parent: tuple[str, Path] | None = None
        if newest is not None:
            with contextlib.suppress(SnapshotNotFound):  # then all is new
                parent = newest, stack.enter_context(open_store(settings)).table_path(newest, "files")
        session = stack.enter_context(
            open_session(source.connection, compress_level=replication.compress_level, bandwidth_limit_kbps=limit)
        )
        found = survey(
            session,
            source.inventory,
            plan.exclude,
            parent=parent,
            seconds=WALK_SECONDS,
            measure=limit == 0,  # under a limit its own rate is all that would be seen
        )
    return surveyed(plan, found)

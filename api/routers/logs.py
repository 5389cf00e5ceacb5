"""/v1/jobs/{id}/logs"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.dependencies import TheCatalog, TheOrchestration, ThePlace, await_here
from api.problems import responses
from rehost.catalog.log_entries import LogEntry, LogLevel
from rehost.catalog.records import Page
from rehost.errors import JobNotFound, OrchestrationAway, RunNotFound

router = APIRouter(prefix="/jobs", tags=["jobs"])


@router.get("/{id}/logs", responses=responses(JobNotFound, RunNotFound, OrchestrationAway))
def read_logs(
    id: str,
    catalog: TheCatalog,
    orchestration: TheOrchestration,
    place: ThePlace,
    run_id: Annotated[
        str | None, Query(max_length=64, description="of this run, or of this verification, alone")
    ] = None,
    level: Annotated[LogLevel, Query(description="this level and all above")] = LogLevel.INFO,
    order: Annotated[Literal["newest", "oldest"], Query(description="which comes first")] = "newest",
) -> Page[LogEntry]:
    """What the runs of a job, and the verifications that were asked for by themselves, said."""
    flow_runs = catalog.flow_runs(id, run_id)
    return await_here(
        orchestration.read_logs, flow_runs, level=level, order=order, limit=place.limit, cursor=place.cursor
    )

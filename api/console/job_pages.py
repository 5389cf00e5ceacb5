"""The pages of jobs: all of them, one of them, its log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from starlette.responses import Response

from api.console import views
from api.console.access import TheVisitor
from api.console.pages import ConsoleRoute, page
from api.dependencies import Place, TheCatalog, TheOrchestration
from api.events import Hub
from api.routers.events import follow_job, get_hub
from api.routers.logs import read_logs
from rehost.catalog.log_entries import LogLevel
from rehost.catalog.paging import MAX_LIMIT
from rehost.catalog.states import JobStatus
from rehost.errors import OrchestrationAway

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)

PAGE_ITEMS = 25
_SHOWN_OF_A_JOB = 20
_REFRESH_SECONDS = 5
Text = Annotated[str, Query(max_length=128)]
Cursor = Annotated[str | None, Query(max_length=200)]


def status_of(text: str) -> JobStatus | None:
    """The state that a filter names; anything else is no filter."""
    return JobStatus(text) if text in {status.value for status in JobStatus} else None


@router.get("/")
def overview(
    request: Request, visitor: TheVisitor, catalog: TheCatalog, q: Text = "", status: Text = "", cursor: Cursor = None
) -> Response:
    """How many jobs are in which state, and the jobs, searched and filtered."""
    wanted = status_of(status)
    found = catalog.search_jobs(text=q.strip(), status=wanted, limit=PAGE_ITEMS, cursor=cursor)
    sources, images = catalog.counts()
    counts = catalog.job_counts()
    return page(
        request,
        visitor,
        "jobs.html",
        found=found,
        counts=counts,
        total=sum(counts.values()),
        sources=sources,
        images=images,
        source_names=catalog.source_names({job.source_id for job in found.items}),
        q=q,
        status=wanted,
        cursor=cursor,
        tones=views.TONES,
        repeats=views.repeats,
        asked_for=views.asked_for,
        refresh=_REFRESH_SECONDS * 3 if counts[JobStatus.RUNNING] else None,
    )


@router.get("/jobs")
def jobs(request: Request, visitor: TheVisitor, catalog: TheCatalog, cursor: Cursor = None) -> Response:
    """The same as `/`."""
    return overview(request, visitor, catalog, cursor=cursor)


@router.get("/jobs/{id}/log")
def show_log(
    id: str,
    request: Request,
    visitor: TheVisitor,
    catalog: TheCatalog,
    flows: TheOrchestration,
    level: Text = "",
    run_id: Text = "",
    cursor: Cursor = None,
) -> Response:
    """What the runs of a job said. Where Prefect does not answer the page says so."""
    job = catalog.job(id)
    least = LogLevel(level) if level in set(LogLevel) else LogLevel.INFO
    found, error = None, None
    try:
        found = read_logs(id, catalog, flows, Place(MAX_LIMIT, cursor), run_id or None, least)
    except OrchestrationAway as away:
        error = away
    return page(
        request,
        visitor,
        "log.html",
        job=job,
        found=found,
        error=error,
        level=least,
        levels=list(LogLevel),
        run_id=run_id,
        runs=catalog.runs(id, limit=_SHOWN_OF_A_JOB).items,
        cursor=cursor,
        tones=views.TONES,
        refresh=_REFRESH_SECONDS if views.is_under_way(job) and not cursor else None,
    )


@router.get("/jobs/{id}/events")
async def follow(
    id: str,
    visitor: TheVisitor,
    hub: Annotated[Hub, Depends(get_hub)],
    last_event_id: Annotated[str | None, Header(max_length=100)] = None,
) -> Response:
    """The events of the API, for the page of the job: the browser sends its cookie here, and has no key to send."""
    return await follow_job(id, hub, last_event_id)


@router.get("/jobs/{id}")
def show_job(id: str, request: Request, visitor: TheVisitor, catalog: TheCatalog) -> Response:
    """One job as it stands."""
    job = catalog.job(id)
    source = catalog.source(job.source_id)
    return page(
        request,
        visitor,
        "job.html",
        job=job,
        source=source,
        runs=catalog.runs(id, limit=_SHOWN_OF_A_JOB),
        images=catalog.images(job_id=id, limit=_SHOWN_OF_A_JOB),
        verifications=catalog.verifications(id, limit=_SHOWN_OF_A_JOB),
        actions=views.actions(job),
        stages=views.STAGES,
        drawings=views.drawings(source),
        target_disks=views.target_disks,
        run_seconds=views.run_seconds,
        repeats=views.repeats(job),
        asked_for=views.asked_for(job),
        reached=views.reached(source.connection),
        tones=views.TONES,
        under_way=views.is_under_way(job),
        refresh=_REFRESH_SECONDS if views.is_under_way(job) else None,
    )

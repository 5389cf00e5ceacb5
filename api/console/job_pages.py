"""The pages of jobs: all of them, one of them, its log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.console import views
from api.console.access import TheVisitor
from api.console.pages import ConsoleRoute, page
from api.dependencies import TheCatalog
from rehost.catalog.states import JobStatus

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

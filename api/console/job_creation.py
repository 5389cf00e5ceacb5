"""The pages that make a job: choose a source, fill the form, look at the plan, create."""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import launch
from api.console import views
from api.console.access import TheForm, TheVisitor, Visitor, needs
from api.console.forms import Filled, filled, show_faults
from api.console.job_form import defaults, job_body
from api.console.job_pages import PAGE_ITEMS, Cursor, Text
from api.console.pages import ConsoleRoute, gone_to, once_of, page
from api.console.sessions import Flash
from api.dependencies import Orchestration, TheCatalog, TheMoment, TheOrchestration, TheSettings
from rehost.catalog.catalog import Catalog
from rehost.catalog.plan import Plan
from rehost.catalog.records import Job, Source
from rehost.catalog.request import JobRequest, judge
from rehost.errors import RehostError
from rehost.regions.regions import regions
from rehost.settings import Settings

router = APIRouter(route_class=ConsoleRoute, include_in_schema=False)


@router.get("/jobs/new", dependencies=[needs("run")])
def new_job(
    request: Request,
    visitor: TheVisitor,
    catalog: TheCatalog,
    settings: TheSettings,
    source_id: Annotated[str, Query(max_length=64)] = "",
    q: Text = "",
    cursor: Cursor = None,
) -> Response:
    """The form for a source; without one, the sources to choose from."""
    if source_id:
        return _form_page(request, visitor, settings, catalog.source(source_id), Filled(), None)
    found = catalog.search_sources(text=q.strip(), limit=PAGE_ITEMS, cursor=cursor)
    return page(
        request, visitor, "job_source.html", found=found, q=q, cursor=cursor, reached=views.reached, tones=views.TONES
    )


@router.post("/jobs/new", dependencies=[needs("run")])
def create_job(
    request: Request,
    visitor: TheVisitor,
    form: TheForm,
    catalog: TheCatalog,
    flows: TheOrchestration,
    settings: TheSettings,
    moment: TheMoment,
) -> Response:
    """Show the plan, or make the job. What is wrong is told at its field, and what was filled in stays."""
    given = filled(form)
    source = catalog.source(given.text("/source_id"))
    body, pointers = job_body(given, source.id, source.inventory)
    creates = given.text("do") == "create"
    wanted = JobRequest.of(body)
    try:
        if creates and wanted.spec is not None:
            job = catalog.job(_create(catalog, flows, settings, wanted, moment, request, given.text("_once")))
            return gone_to(f"/jobs/{job.id}", visitor, Flash("good", f"The job {job.name} is made.", job.next_step))
        plan = judge(wanted, catalog, settings, moment, dry_run=True)
    except RehostError as error:
        show_faults(given, error, pointers)
        return _form_page(request, visitor, settings, source, given, None, status=error.http_status)
    return _form_page(request, visitor, settings, source, given, plan)


def _create(
    catalog: Catalog,
    flows: Orchestration,
    settings: Settings,
    wanted: JobRequest,
    moment: datetime,
    request: Request,
    key: str,
) -> str:
    """The job's id; a form that is sent twice makes one job."""
    spec = wanted.spec
    assert spec is not None

    def make() -> tuple[Job, str]:
        judge(wanted, catalog, settings, moment)
        job = launch.create_job(catalog, flows, spec)
        return job, f"/jobs/{job.id}"

    return once_of(catalog, request, key).answer(spec, make).headers["Location"].rpartition("/")[2]


def _form_page(
    request: Request,
    visitor: Visitor,
    settings: Settings,
    source: Source,
    form: Filled,
    plan: Plan | None,
    status: int = 200,
) -> Response:
    return page(
        request,
        visitor,
        "job_form.html",
        status_code=status,
        source=source,
        form=form,
        plan=plan,
        once=form.text("_once") or secrets.token_hex(16),
        region_choices=[(one.id, one.id) for one in regions(settings)],
        defaults=defaults(),
        reached=views.reached(source.connection),
        tones=views.TONES,
    )

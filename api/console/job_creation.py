"""The pages that make a job: choose a source, fill the form, look at the plan, create."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import launch, plans
from api.console import views
from api.console.access import TheForm, TheVisitor, Visitor, needs
from api.console.forms import Filled, filled, show_faults
from api.console.job_form import defaults, job_body, job_spec
from api.console.job_pages import PAGE_ITEMS, Cursor, Text
from api.console.pages import ConsoleRoute, gone_to, page
from api.console.sessions import Flash
from api.dependencies import Orchestration, TheCatalog, TheOrchestration, TheSettings
from api.once import Once
from rehost.catalog.catalog import Catalog
from rehost.catalog.job import JobSpec
from rehost.catalog.plan import Plan
from rehost.catalog.records import Job, Source
from rehost.errors import Conflict, RehostError
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
) -> Response:
    """Show the plan, or make the job. What is wrong is told at its field, and what was filled in stays."""
    given = filled(form)
    source = catalog.source(given.text("/source_id"))
    body, pointers = job_body(given, source.id, source.inventory)
    plan = None
    try:
        spec = job_spec(body)
        plan = plans.checked(spec, catalog, settings)
        if given.text("do") == "create":
            job_id = _create(catalog, flows, spec, request, given.text("_once"))
            job = catalog.job(job_id)
            return gone_to(f"/jobs/{job_id}", visitor, Flash("good", f"The job {job.name} is made.", job.next_step))
        catalog.conflicts(spec)
    except RehostError as error:
        show_faults(given, error, pointers)
        plan = plan if isinstance(error, Conflict) else None
        return _form_page(request, visitor, settings, source, given, plan, status=error.http_status)
    return _form_page(request, visitor, settings, source, given, plan)


def _create(catalog: Catalog, flows: Orchestration, spec: JobSpec, request: Request, key: str) -> str:
    """The job's id; a form that is sent twice makes one job."""

    def make() -> tuple[Job, str]:
        job = launch.create_job(catalog, flows, spec)
        return job, f"/jobs/{job.id}"

    once = Once(catalog, request, key if key.isascii() and key.isalnum() and len(key) <= 64 else None)
    return once.answer(spec, make).headers["Location"].rpartition("/")[2]


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

"""The pages of sources: all of them, one of them, the form that registers one."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Request
from starlette.responses import Response

from api import registration
from api.console import views
from api.console.access import TheForm, TheVisitor, Visitor, needs
from api.console.forms import Filled, filled, show_faults
from api.console.job_pages import PAGE_ITEMS, Cursor, Text
from api.console.pages import ConsoleRoute, failed, gone_to, once_of, page
from api.console.sessions import Flash
from api.console.source_form import source_body, source_spec
from api.dependencies import TheCatalog, TheOrchestration, TheSettings
from rehost.catalog.records import Source
from rehost.errors import RehostError

router = APIRouter(prefix="/sources", route_class=ConsoleRoute, include_in_schema=False)

_SHOWN_JOBS = 20


@router.get("")
def list_sources(
    request: Request, visitor: TheVisitor, catalog: TheCatalog, q: Text = "", cursor: Cursor = None
) -> Response:
    """The servers, searched by name."""
    found = catalog.search_sources(text=q.strip(), limit=PAGE_ITEMS, cursor=cursor)
    return page(
        request, visitor, "sources.html", found=found, q=q, cursor=cursor, reached=views.reached, tones=views.TONES
    )


@router.get("/new", dependencies=[needs("admin")])
def new_source(request: Request, visitor: TheVisitor) -> Response:
    """The form, empty."""
    return _form_page(request, visitor, Filled())


@router.post("/new", dependencies=[needs("admin")])
def register_source(request: Request, visitor: TheVisitor, form: TheForm, catalog: TheCatalog) -> Response:
    """Connect, discover, remember; where that fails nothing is stored and what was filled in stays."""
    given = filled(form)
    body, pointers = source_body(given)
    key = given.text("_once")

    try:
        spec = source_spec(body)

        def make() -> tuple[Source, str]:
            source = registration.register(spec, catalog)
            return source, f"/sources/{source.id}"

        address = once_of(catalog, request, key).answer(spec, make).headers["Location"]
    except RehostError as error:
        show_faults(given, error, pointers)
        return _form_page(request, visitor, given, status=error.http_status if error.http_status < 500 else 502)
    return gone_to(address, visitor, Flash("good", "The source is registered; this is what was found there."))


@router.get("/{id}")
def show_source(id: str, request: Request, visitor: TheVisitor, catalog: TheCatalog) -> Response:
    """One source with what was found there, and its jobs."""
    source = catalog.source(id)
    return page(
        request,
        visitor,
        "source.html",
        source=source,
        jobs=catalog.search_jobs(source_id=id, limit=_SHOWN_JOBS),
        drawings=views.drawings(source),
        reached=views.reached(source.connection),
        tones=views.TONES,
        asked_for=views.asked_for,
    )


@router.post("/{id}/discover", dependencies=[needs("run")])
def discover_source(id: str, visitor: TheVisitor, _form: TheForm, catalog: TheCatalog) -> Response:
    """Take the inventory once more."""
    try:
        source = registration.discover_again(id, catalog)
    except RehostError as error:
        catalog.source(id)  # one that does not exist is a page of its own
        return gone_to(f"/sources/{id}", visitor, failed(error))
    return gone_to(f"/sources/{id}", visitor, Flash("good", f"{source.name} answered; what was found is below."))


@router.get("/{id}/delete", dependencies=[needs("admin")])
def confirm_removal(id: str, request: Request, visitor: TheVisitor, catalog: TheCatalog) -> Response:
    """Ask before a source goes."""
    source = catalog.source(id)
    return page(
        request,
        visitor,
        "confirm.html",
        subject=source.name,
        address=f"/sources/{id}",
        action=views.Button(
            "delete",
            "Remove",
            "admin",
            danger=True,
            options=(views.Option("force", "Also with an unfinished job, which is deleted too."),),
            consequence="The source is forgotten with its jobs. Its images stay. Nothing changes on the server.",
        ),
    )


@router.post("/{id}/delete", dependencies=[needs("admin")])
def remove_source(
    id: str,
    visitor: TheVisitor,
    form: TheForm,
    catalog: TheCatalog,
    flows: TheOrchestration,
    settings: TheSettings,
) -> Response:
    """Forget the source with its jobs."""
    source = catalog.source(id)
    try:
        registration.remove(id, catalog, flows, settings, force=form.get("force") == "true")
    except RehostError as error:
        return gone_to(f"/sources/{id}", visitor, failed(error))
    return gone_to("/sources", visitor, Flash("good", f"{source.name} is removed."))


def _form_page(request: Request, visitor: Visitor, form: Filled, status: int = 200) -> Response:
    once = form.text("_once") or secrets.token_hex(16)
    return page(request, visitor, "source_form.html", status_code=status, form=form, once=once)

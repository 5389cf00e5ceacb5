"""/v1/sources"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api.dependencies import TheCatalog, ThePlace
from api.models import SourceSpec
from api.once import TheOnce
from api.problems import responses
from rehost.catalog.records import Page, Source
from rehost.errors import SourceError
from rehost.source.connect import DiskConnection, PathConnection, SshConnection, open_session
from rehost.source.inventory import Inventory

router = APIRouter(prefix="/sources", tags=["sources"])


@router.post("", status_code=201, response_model=Source, responses=responses(409, 422))
def register_source(spec: SourceSpec, catalog: TheCatalog, once: TheOnce) -> Response:
    """Connect to a server, discover what it is, and remember it. Where that fails nothing is stored."""

    def make() -> tuple[Source, str]:
        inventory = _discover(spec.connection)
        source = catalog.add_source(
            spec.connection, inventory, name=spec.name, description=spec.description, tags=spec.tags
        )
        return source, f"/v1/sources/{source.id}"

    return once.answer(spec, make)


@router.get("", responses=responses(422))
def list_sources(catalog: TheCatalog, place: ThePlace) -> Page[Source]:
    """All sources, newest first."""
    return catalog.sources(limit=place.limit, cursor=place.cursor)


@router.get("/{id}", responses=responses(404))
def show_source(id: str, catalog: TheCatalog) -> Source:
    """One source with its inventory."""
    return catalog.source(id)


@router.post("/{id}/discover", responses=responses(404, 409))
def discover_source(id: str, catalog: TheCatalog) -> Source:
    """Take the inventory once more. A source that does not answer becomes `unavailable` and keeps what was known."""
    source = catalog.source(id)
    try:
        inventory = _discover(source.connection)
    except SourceError as error:
        catalog.source_unavailable(id, error)
        raise
    return catalog.source_discovered(id, inventory)


def _discover(connection: SshConnection | PathConnection | DiskConnection) -> Inventory:
    with open_session(connection) as session:
        return session.inventory()

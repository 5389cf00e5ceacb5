"""/v1/sources"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from api import registration
from api.dependencies import TheCatalog, TheOrchestration, ThePlace, TheSettings
from api.models import SourceChange, SourceSpec
from api.once import TheOnce
from api.problems import responses
from rehost.catalog.records import Page, Source
from rehost.errors import (
    IdempotencyKeyBusy,
    Invalid,
    JobInvalidStatus,
    ProgramFailed,
    ProgramNotFound,
    ProgramTimeout,
    SourceError,
    SourceNeedsForce,
    SourceNotFound,
    SourceStateInvalid,
    error_classes,
)

router = APIRouter(prefix="/sources", tags=["sources"])

_CONNECTING = (*error_classes(SourceError), ProgramNotFound, ProgramFailed, ProgramTimeout)


@router.post(
    "",
    status_code=201,
    response_model=Source,
    responses=responses(*_CONNECTING, IdempotencyKeyBusy, *error_classes(Invalid)),
)
def register_source(spec: SourceSpec, catalog: TheCatalog, once: TheOnce) -> Response:
    """Connect to a server, discover what it is, and remember it. Where that fails nothing is stored."""

    def make() -> tuple[Source, str]:
        source = registration.register(spec, catalog)
        return source, f"/v1/sources/{source.id}"

    return once.answer(spec, make)


@router.get("")
def list_sources(catalog: TheCatalog, place: ThePlace) -> Page[Source]:
    """All sources, newest first."""
    return catalog.sources(limit=place.limit, cursor=place.cursor)


@router.get("/{id}", responses=responses(SourceNotFound))
def show_source(id: str, catalog: TheCatalog) -> Source:
    """One source with its inventory."""
    return catalog.source(id)


@router.patch("/{id}", responses=responses(SourceNotFound, SourceStateInvalid, JobInvalidStatus, *_CONNECTING))
def change_source(id: str, change: SourceChange, catalog: TheCatalog) -> Source:
    """Set what the body names. By a new connection the source is discovered first; where that fails nothing changes."""
    named = change.model_dump(exclude_unset=True, exclude={"connection"})
    if change.connection is None:
        return catalog.change_source(id, named)
    catalog.check_connection_free(id)
    return catalog.change_source(id, named, change.connection, registration.discover(change.connection))


@router.delete(
    "/{id}",
    status_code=204,
    response_class=Response,
    responses=responses(SourceNotFound, SourceNeedsForce, JobInvalidStatus),
)
def delete_source(
    id: str,
    catalog: TheCatalog,
    orchestration: TheOrchestration,
    settings: TheSettings,
    force: Annotated[bool, Query(description="also with an unfinished job, which is deleted too")] = False,
) -> None:
    """Forget the source with its jobs. Its images stay, and so does what they were made from."""
    registration.remove(id, catalog, orchestration, settings, force=force)


@router.post("/{id}/discover", responses=responses(SourceNotFound, *_CONNECTING))
def discover_source(id: str, catalog: TheCatalog) -> Source:
    """Take the inventory once more. A source that does not answer becomes `unavailable` and keeps what was known."""
    return registration.discover_again(id, catalog)

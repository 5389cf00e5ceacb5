"""/v1/sources/import and /v1/jobs/import: many at once, from a CSV file"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query
from pydantic import BaseModel
from starlette.responses import Response

from api import imports
from api.dependencies import TheCatalog, TheMoment, TheOrchestration, TheSettings
from api.imports import ImportAnswer, JobRow, SourceRow
from api.once import TheOnce
from api.problems import responses
from rehost.catalog.faults import Fault, raise_faults

router = APIRouter()

_SOURCES = "name,host,port,user,identity_file,tags\nweb1,web1.example.org,22,root,,team=web;stage=live\n"
_JOBS = "source,name,formats,container,interval_hours,max_images,execution,tags\nweb1,shop,qcow2;raw,shop/web1:v1,24,3,now,\n"


class _File(BaseModel):
    """What a request with an idempotency key is known by."""

    csv: str


def _csv(content: bytes, content_type: str | None) -> bytes:
    """Raises InvalidParameter for a body that was not said to be CSV."""
    if (content_type or "").partition(";")[0].strip().lower() != "text/csv":
        raise_faults([Fault("Content-Type", "is text/csv; charset=utf-8")])
    return content


@router.post("/sources/import", tags=["sources"], response_model=ImportAnswer[SourceRow], responses=responses(409, 422))
def import_sources(
    content: Annotated[bytes, Body(media_type="text/csv", examples=[_SOURCES])],
    catalog: TheCatalog,
    once: TheOnce,
    content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
    dry_run: Annotated[bool, Query(description="check the form of every row; connect to nothing")] = False,
) -> Response:
    """Register a source for each row of a CSV file, sixteen at once; each row is answered for itself.

    A server that is known already is told with its source. The answer comes when the last server has answered.
    """
    file = _csv(content, content_type)
    return once.answer(
        _File(csv=file.decode("latin-1")),
        lambda: (imports.import_sources(file, catalog, dry_run=dry_run), None),
        status=200,
    )


@router.post("/jobs/import", tags=["jobs"], response_model=ImportAnswer[JobRow], responses=responses(409, 422, 503))
def import_jobs(
    content: Annotated[bytes, Body(media_type="text/csv", examples=[_JOBS])],
    catalog: TheCatalog,
    orchestration: TheOrchestration,
    settings: TheSettings,
    moment: TheMoment,
    once: TheOnce,
    content_type: Annotated[str | None, Header(include_in_schema=False)] = None,
    dry_run: Annotated[bool, Query(description="check every row and tell its plan; store and start nothing")] = False,
) -> Response:
    """Make a job of each row of a CSV file, and start it as its `execution` says; each row is answered for itself."""
    file = _csv(content, content_type)
    return once.answer(
        _File(csv=file.decode("latin-1")),
        lambda: (imports.import_jobs(file, catalog, orchestration, settings, moment, dry_run=dry_run), None),
        status=200,
    )

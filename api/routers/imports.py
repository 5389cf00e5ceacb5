"""/v1/sources/import and /v1/jobs/import: many at once, from a CSV file"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Body, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from api import imports
from api.dependencies import TheCatalog, TheMoment, TheOrchestration, TheSettings
from api.imports import ImportAnswer, JobRow, SourceRow
from api.once import TheOnce
from api.problems import responses
from rehost.errors import (
    IdempotencyKeyBusy,
    IdempotencyKeyReused,
    InvalidParameter,
    MediaTypeUnsupported,
)

router = APIRouter()

_SOURCES = "name,host,port,user,identity_file,tags\nweb1,web1.example.org,22,root,,team=web;stage=live\n"
_JOBS = "source,name,formats,container,interval_hours,execution,tags\nweb1,shop,qcow2;raw,shop/web1:v1,24,now,\n"


# A thousand servers that do not answer, sixteen at once, take a quarter of an hour; slow ones take longer.
_ABANDONED = timedelta(hours=3)
# Of the file as a whole: what is wrong with a row is in the answer.
_ERRORS = (IdempotencyKeyBusy, IdempotencyKeyReused, InvalidParameter, MediaTypeUnsupported)


class _File(BaseModel):
    """What a request with an idempotency key is known by."""

    csv: str


def _csv(content: bytes, request: Request) -> bytes:
    """Raises MediaTypeUnsupported for a body that was not said to be CSV."""
    given = request.headers.get("content-type", "").partition(";")[0].strip()
    if given.lower() != "text/csv":
        raise MediaTypeUnsupported(path=request.url.path, wanted="text/csv", given=given or "no type")
    return content


@router.post("/sources/import", tags=["sources"], response_model=ImportAnswer[SourceRow], responses=responses(*_ERRORS))
def import_sources(
    request: Request,
    content: Annotated[bytes, Body(media_type="text/csv", examples=[_SOURCES])],
    catalog: TheCatalog,
    once: TheOnce,
    dry_run: Annotated[bool, Query(description="check the form of every row; connect to nothing")] = False,
) -> Response:
    """Register a source for each row of a CSV file, sixteen at once; each row is answered for itself.

    A server that is known already is told with its source. The answer comes when the last server has answered.
    """
    file = _csv(content, request)
    return once.answer(
        _File(csv=file.decode("latin-1")),
        lambda: (imports.import_sources(file, catalog, dry_run=dry_run), None),
        status=200,
        abandoned=_ABANDONED,
    )


@router.post("/jobs/import", tags=["jobs"], response_model=ImportAnswer[JobRow], responses=responses(*_ERRORS))
def import_jobs(
    request: Request,
    content: Annotated[bytes, Body(media_type="text/csv", examples=[_JOBS])],
    catalog: TheCatalog,
    orchestration: TheOrchestration,
    settings: TheSettings,
    moment: TheMoment,
    once: TheOnce,
    dry_run: Annotated[bool, Query(description="check every row and tell its plan; store and start nothing")] = False,
) -> Response:
    """Make a job of each row of a CSV file, and start it as its `execution` says; each row is answered for itself."""
    file = _csv(content, request)
    return once.answer(
        _File(csv=file.decode("latin-1")),
        lambda: (imports.import_jobs(file, catalog, orchestration, settings, moment, dry_run=dry_run), None),
        status=200,
        abandoned=_ABANDONED,
    )

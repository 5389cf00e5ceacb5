"""ETags of jobs: `"VERSION"`. A change can be made to depend on the version that its sender has seen (RFC 9110, 13).

What a run counts while it goes on (progress, bytes, the time left) moves no version, so that a change does not depend
on it; a running job is therefore never answered as not modified.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Header
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse

from api.dependencies import TheCatalog
from rehost.catalog.records import Job
from rehost.catalog.states import JobStatus
from rehost.errors import PreconditionFailed

_TAG = re.compile(r'(?:W/)?"[^"]*"')
MAX_HEADER = 1000


class JobAnswer(JSONResponse):
    """JSON; where it is a job, with its ETag."""

    def __init__(
        self,
        content: Any,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        super().__init__(content, status_code, headers, media_type, background)
        if isinstance(content, dict) and isinstance(content.get("version"), int):
            self.headers["ETag"] = etag(content["version"])


def etag(version: int) -> str:
    """The ETag of a job of that version."""
    return f'"{version}"'


def is_unmodified(job: Job, if_none_match: str | None) -> bool:
    """Whether the caller has the job as it is: a version that it names, of a job that does not run."""
    if if_none_match is None or job.status is JobStatus.RUNNING or job.queued:
        return False
    named = {tag.removeprefix("W/") for tag in _TAG.findall(if_none_match)}
    return if_none_match.strip() == "*" or etag(job.version) in named


def expected_version(
    id: str,
    catalog: TheCatalog,
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match", max_length=MAX_HEADER, description="do it only to the version of the job with this ETag"
        ),
    ] = None,
) -> int | None:
    """The version that the request is for; None: for any. Raises JobNotFound, PreconditionFailed."""
    if if_match is None or if_match.strip() == "*":
        return None
    version = catalog.job(id).version
    if etag(version) not in _TAG.findall(if_match):  # a weak tag matches nothing here
        raise PreconditionFailed(what=f"job {id}", version=version, wanted=if_match)
    return version


ExpectedVersion = Annotated[int | None, Depends(expected_version)]

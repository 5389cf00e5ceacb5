"""/v1/jobs"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query
from fastapi.openapi.models import Example
from starlette.responses import JSONResponse, Response

from api import actions, change, launch, look
from api.dependencies import TheCatalog, TheMoment, TheOrchestration, ThePlace, TheSettings
from api.etags import MAX_HEADER, ExpectedVersion, JobAnswer, etag, is_unmodified
from api.models import CutOver, ImageAnswer, image_answer
from api.once import TheOnce
from api.problems import responses
from rehost.catalog.changes import JobPatch
from rehost.catalog.faults import Fault, raise_faults
from rehost.catalog.plan import Plan
from rehost.catalog.records import Job, Page, Run, VerificationRecord
from rehost.catalog.request import JobRequest, judge
from rehost.catalog.states import BusinessStatus, JobStatus
from rehost.errors import (
    IdempotencyKeyBusy,
    ImageInUse,
    ImageNameUsedByJob,
    ImageNotVerified,
    Invalid,
    JobInvalidBusinessStatus,
    JobInvalidStatus,
    JobNameDuplicate,
    JobNoImage,
    JobNotFound,
    JobQuotaExceeded,
    OrchestrationAway,
    RegionNotFound,
    RehostError,
    SourceError,
    SourceHasUnfinishedJob,
    SourceNotFound,
    SourceStateInvalid,
    VerificationUnderWay,
    error_classes,
)

router = APIRouter(prefix="/jobs", tags=["jobs"], default_response_class=JobAnswer)

_EXAMPLE = {
    "source_id": "s-0123456789abcdefghij",
    "region_id": "local",
    "name": "web1",
    "targets": {
        "image": {"formats": ["qcow2"], "boot_mode": "both"},
        "container_image": {"namespace": "shop", "repository": "web1"},
    },
}
# In a map, as OpenAPI has them beside a schema: the one of a patch is whole, and takes no list of them.
_CHANGES: dict[str, Example] = {
    "labels": {"value": {"description": "The shop", "tags": {"team": "web", "old": None}}},
    "rates": {"value": {"incremental": {"interval_hours": 12}, "replication": {"bandwidth_limit_kbps": 2000}}},
}
_CHANGE_ERRORS: tuple[type[RehostError], ...] = (
    JobNotFound,
    JobInvalidStatus,
    JobNameDuplicate,
    ImageNameUsedByJob,
    *error_classes(Invalid),
    OrchestrationAway,
)
_CREATE_ERRORS: tuple[type[RehostError], ...] = (
    SourceNotFound,
    RegionNotFound,
    *error_classes(SourceError),  # `scan` connects
    SourceStateInvalid,
    SourceHasUnfinishedJob,
    JobNameDuplicate,
    ImageNameUsedByJob,
    JobQuotaExceeded,
    IdempotencyKeyBusy,
    ImageInUse,
    *error_classes(Invalid),
    OrchestrationAway,
)


@router.post(
    "",
    status_code=201,
    response_model=Job,
    responses={
        **responses(*_CREATE_ERRORS),
        200: {"model": Plan, "description": "with `dry_run`: the plan alone"},
    },
)
def create_job(
    request: Annotated[JobRequest, Body(examples=[_EXAMPLE])],
    catalog: TheCatalog,
    orchestration: TheOrchestration,
    settings: TheSettings,
    moment: TheMoment,
    once: TheOnce,
    dry_run: Annotated[
        bool, Query(description="check everything and answer the plan; store and start nothing")
    ] = False,
    scan: Annotated[
        bool, Query(description="with `dry_run`: walk the source too, for five minutes at most, and tell what is there")
    ] = False,
) -> Response:
    """Make a job, and start it as its `execution` says. All that is wrong with the request is in one answer."""

    def make() -> tuple[Job, str]:
        judge(request, catalog, settings, moment)
        assert request.spec is not None
        job = launch.create_job(catalog, orchestration, request.spec)
        return job, f"/v1/jobs/{job.id}"

    if scan and not dry_run:
        raise_faults([Fault("?scan", "goes with `dry_run`"), *request.faults])
    if dry_run or request.spec is None or request.faults:
        planned = judge(request, catalog, settings, moment, dry_run=dry_run)
        if scan:
            planned = look.with_survey(planned, catalog, settings)
        return JSONResponse(planned.model_dump(mode="json"))
    return once.answer(request.spec, make)


@router.get("")
def list_jobs(
    catalog: TheCatalog,
    place: ThePlace,
    status: JobStatus | None = None,
    business_status: BusinessStatus | None = None,
    source_id: str | None = None,
    name: str | None = None,
    region_id: str | None = None,
    tag: Annotated[list[str] | None, Query(description="KEY:VALUE; may be given several times")] = None,
) -> Page[Job]:
    """Jobs, newest first; the filters are joined by AND."""
    faults = [Fault("?tag", "is KEY:VALUE") for text in tag or [] if ":" not in text]
    pairs = [(key, value) for text in tag or [] for key, _, value in [text.partition(":")]]
    if len(dict(pairs)) != len(set(pairs)):
        faults.append(Fault("?tag", "asks for two values of one key, which no job has"))
    raise_faults(faults)
    return catalog.jobs(
        status=status,
        business_status=business_status,
        source_id=source_id,
        name=name,
        region_id=region_id,
        tags=dict(pairs),
        limit=place.limit,
        cursor=place.cursor,
    )


@router.get(
    "/{id}",
    response_model=Job,
    responses={**responses(JobNotFound), 304: {"description": "the job does not run, and If-None-Match has its ETag"}},
)
def show_job(
    id: str,
    catalog: TheCatalog,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", max_length=MAX_HEADER, description="the ETag that is known already")
    ] = None,
) -> Job | Response:
    """One job as it stands."""
    job = catalog.job(id)
    if is_unmodified(job, if_none_match):
        return Response(status_code=304, headers={"ETag": etag(job.version)})
    return job


@router.patch("/{id}", responses=responses(*_CHANGE_ERRORS))
def change_job(
    id: str,
    patch: Annotated[JobPatch, Body(openapi_examples=_CHANGES)],
    catalog: TheCatalog,
    orchestration: TheOrchestration,
    moment: TheMoment,
    expected: ExpectedVersion,
) -> Job:
    """Change what the body names (RFC 7386: null puts a default back); nothing where anything of it is refused.

    Name and description can change at any time, the end and the bandwidth until the job has ended, `incremental` before
    the first run and in Waiting, everything else before the first run. A transfer that is under way follows another
    bandwidth within seconds.
    """
    return change.change_job(catalog, orchestration, id, patch, moment, expected=expected)


@router.post("/{id}/start", responses=responses(JobNotFound, JobInvalidStatus, OrchestrationAway))
def start_job(id: str, catalog: TheCatalog, orchestration: TheOrchestration, expected: ExpectedVersion) -> Job:
    """Begin a run. After a stop or a failure it goes on from what already arrived."""
    return launch.start_job(catalog, orchestration, id, expected=expected)


@router.post(
    "/{id}/stop",
    responses=responses(JobNotFound, JobInvalidStatus, JobInvalidBusinessStatus, OrchestrationAway),
)
def stop_job(id: str, catalog: TheCatalog, orchestration: TheOrchestration, expected: ExpectedVersion) -> Job:
    """Stop a job that is syncing or waiting. A syncing one is Stopped when its programs have ended."""
    return launch.stop_job(catalog, orchestration, id, expected=expected)


@router.post(
    "/{id}/verify",
    responses=responses(JobNotFound, JobInvalidStatus, VerificationUnderWay, JobNoImage, OrchestrationAway),
)
def verify_job(id: str, catalog: TheCatalog, orchestration: TheOrchestration, expected: ExpectedVersion) -> Job:
    """Test the newest images again. The job keeps its state; `latest_verification` tells how the test stands."""
    return actions.verify_job(catalog, orchestration, id, expected=expected)


@router.post(
    "/{id}/cut-over",
    responses=responses(JobNotFound, JobInvalidStatus, JobNoImage, ImageNotVerified, OrchestrationAway),
)
def cut_over_job(
    id: str,
    catalog: TheCatalog,
    orchestration: TheOrchestration,
    expected: ExpectedVersion,
    order: Annotated[CutOver | None, Body()] = None,
) -> Job:
    """The server moves: the job is Finished with the images that it has, or after one last run. Its schedule goes."""
    return actions.cut_over_job(catalog, orchestration, id, sync=order is not None and order.sync, expected=expected)


@router.delete(
    "/{id}",
    status_code=204,
    response_class=Response,
    responses=responses(JobNotFound, JobInvalidStatus, ImageInUse),
)
def delete_job(
    id: str,
    catalog: TheCatalog,
    orchestration: TheOrchestration,
    settings: TheSettings,
    expected: ExpectedVersion,
    images: Annotated[bool, Query(description="its images too; refused where one of them is in use")] = False,
) -> None:
    """Remove the job, its runs and verifications, its schedule and its change tracker. Its images stay unless asked."""
    actions.delete_job(catalog, orchestration, settings, id, images=images, expected=expected)


@router.get("/{id}/runs", responses=responses(JobNotFound))
def list_runs(id: str, catalog: TheCatalog, place: ThePlace) -> Page[Run]:
    """The runs of a job, newest first."""
    return catalog.runs(id, limit=place.limit, cursor=place.cursor)


@router.get("/{id}/images", responses=responses(JobNotFound))
def list_job_images(id: str, catalog: TheCatalog, place: ThePlace) -> Page[ImageAnswer]:
    """The images of a job, newest first."""
    page = catalog.images(job_id=id, limit=place.limit, cursor=place.cursor)
    items = tuple(image_answer(image) for image in page.items)
    return Page[ImageAnswer](items=items, next_cursor=page.next_cursor, total=page.total)


@router.get("/{id}/verifications", responses=responses(JobNotFound))
def list_verifications(id: str, catalog: TheCatalog, place: ThePlace) -> Page[VerificationRecord]:
    """The verifications of a job's images, newest first."""
    return catalog.verifications(id, limit=place.limit, cursor=place.cursor)

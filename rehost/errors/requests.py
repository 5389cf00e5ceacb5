"""Requests that cannot be granted, and services that do not answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rehost.errors.base import RehostError


class RequestError(RehostError):
    """{detail}"""

    http_status = 400
    exit_code = 2


class NotFound(RequestError):
    """There is no {resource} {id}."""

    http_status = 404
    remedy = "List what exists and use one of its ids."


class SourceNotFound(NotFound):
    """There is no source {id}."""

    code = "Source.NotFound"


class RegionNotFound(NotFound):
    """There is no region {id}."""

    code = "Region.NotFound"
    remedy = "Use `local`, or configure the region in rehost.toml."


class JobNotFound(NotFound):
    """There is no job {id}."""

    code = "Job.NotFound"


class ImageNotFound(NotFound):
    """There is no image {id}."""

    code = "Image.NotFound"


class RunNotFound(NotFound):
    """There is no run {id}."""

    code = "Run.NotFound"


class RouteNotFound(NotFound):
    """There is no {method} {path}."""

    code = "Route.NotFound"
    remedy = "See /docs for what this API answers."


class MethodNotAllowed(RequestError):
    """{path} does not take {method}."""

    code = "Method.NotAllowed"
    remedy = "See /docs for what this API answers."
    http_status = 405


class RequestTooLarge(RequestError):
    """The request is larger than {limit_bytes} bytes."""

    code = "Request.TooLarge"
    remedy = "Send less in one request."
    http_status = 413


class Conflict(RequestError):
    """{detail}"""

    http_status = 409
    exit_code = 11


class SourceStateInvalid(Conflict):
    """Source {id} is {state}; this needs one that is {allowed}."""

    code = "SourceState.Invalid"
    remedy = "Make the source reachable again, then discover it once more."


class SourceHasUnfinishedJob(Conflict):
    """Source {id} has the unfinished job {job_id}."""

    code = "Source.HasUnfinishedJob"
    remedy = "Finish, or delete, that job first; a source has one unfinished job at a time."


class JobNameDuplicate(Conflict):
    """The region {region_id} has a job named {name} already."""

    code = "JobName.Duplicate"
    remedy = "Choose another name."


class ImageNameUsedByJob(Conflict):
    """The image name {name} belongs to the unfinished job {job_id}."""

    code = "ImageName.UsedByJob"
    remedy = "Choose another image name."


class JobInvalidStatus(Conflict):
    """Job {id} is {status}; {action} is allowed in {allowed}."""

    code = "Job.InvalidStatus"
    remedy = "Wait until the job has reached one of these states."


class JobInvalidBusinessStatus(Conflict):
    """Job {id} is {business_status}; {action} is allowed in {allowed}."""

    code = "Job.InvalidBusinessStatus"
    remedy = "Wait until the job has reached one of these stages."


class JobQuotaExceeded(Conflict):
    """There are {limit} jobs already; no more are kept."""

    code = "QuotaExceeded.Job"
    remedy = "Delete jobs that are no longer needed."


class IdempotencyKeyBusy(Conflict):
    """The request with the idempotency key {key} is still being answered."""

    code = "IdempotencyKey.Busy"
    remedy = "Wait a moment and send the same request again."
    retryable = True
    exit_code = 75


class StreamsTooMany(RequestError):
    """There are {limit} streams of events already."""

    code = "Streams.TooMany"
    remedy = "Close some, or ask GET /v1/jobs/{id} from time to time."
    http_status = 429
    retryable = True
    exit_code = 75


class Invalid(RequestError):
    """{detail}"""

    http_status = 422


class InvalidParameter(Invalid):
    """{detail}"""

    code = "InvalidParameter"
    remedy = "Correct the fields that `errors` points at and send the request again; nothing was started."

    def __init__(self, detail: str, errors: Sequence[tuple[str, ...]] | None = None) -> None:
        super().__init__(detail=detail, errors=list(errors or []))

    @property
    def pointers(self) -> list[tuple[str, ...]]:
        """(JSON pointer, what is wrong there, and its code where it has one of its own), one for each fault."""
        return list(self.facts["errors"])

    def __reduce__(self) -> tuple[Any, ...]:
        return (InvalidParameter, (self.facts["detail"], self.facts["errors"]))


class IdempotencyKeyReused(Invalid):
    """The idempotency key {key} was used for another request."""

    code = "IdempotencyKey.Reused"
    remedy = "Use a new key for a new request."


class DiskSizeTooSmall(Invalid):
    """{what} is too small with {size}: it needs {needed}."""

    code = "DiskSize.TooSmall"
    remedy = "Ask for a larger disk, or exclude what need not move."


class PartitionCannotBlock(Invalid):
    """Partition {device} cannot be replicated by blocks: {reason}"""

    code = "Partition.CannotBlock"
    remedy = "Choose file mode for this partition."


class DataDiskIndexInvalid(Invalid):
    """The data disk {index} cannot be chosen: {reason}."""

    code = "DataDiskIndex.Invalid"
    remedy = "Use the indexes that the source's inventory shows."


class DataDiskDuplicateIndex(Invalid):
    """The data disk {index} is named more than once."""

    code = "DataDisk.DuplicateIndex"
    remedy = "Name each data disk once."


class VSwitchRequired(Invalid):
    """A private network needs a vSwitch."""

    code = "VSwitch.Required"
    remedy = "Give `network.vswitch_id`, or use the public network."


class VSwitchVpcMismatch(Invalid):
    """The vSwitch {vswitch_id} lies in {vpc_id}, not in the VPC that is named."""

    code = "VSwitchVpc.Mismatch"
    remedy = "Give the VPC of the vSwitch in `network.vpc_id`, or leave it out; `GET /v1/regions` shows both."


class ScheduleOutOfRange(Invalid):
    """The schedule is out of range: {reason}."""

    code = "Schedule.OutOfRange"
    remedy = "Start 10 minutes to 30 days ahead; repeat every 1 to 168 hours, by cron at most once an hour."


class TagsNumberExceeded(Invalid):
    """{count} tags are more than {limit}."""

    code = "NumberExceed.Tags"
    remedy = "Use fewer tags."


class Unauthenticated(RequestError):
    """This API wants a key."""

    code = "Unauthenticated"
    remedy = "Send `Authorization: Bearer KEY` with a key that `rehost key add` printed, or one of REHOST_API_KEYS."
    http_status = 401
    exit_code = 12


class Forbidden(RequestError):
    """This request is not allowed: {reason}."""

    code = "Forbidden"
    remedy = (
        "Use a key whose scope covers it; without keys reach the API by 127.0.0.1 or localhost, from no other site."
    )
    http_status = 403
    exit_code = 12


class FormRefused(RequestError):
    """The form was not taken: {reason}."""

    code = "Form.Refused"
    remedy = "Go back, load the page anew and send its form again; nothing was done."
    http_status = 403


class OrchestrationAway(RehostError):
    """The Prefect server at {url} does not answer: {reason}"""

    code = "Prefect.Unavailable"
    remedy = "Start it (`rehost up`), then send the request again; nothing was started."
    retryable = True
    http_status = 503
    exit_code = 75


class CatalogAway(RehostError):
    """The catalog's database does not answer: {reason}"""

    code = "Catalog.Unavailable"
    remedy = "Bring the database back, then send the request again."
    retryable = True
    http_status = 503
    exit_code = 75


class CatalogUrlInvalid(RehostError):
    """REHOST_DATABASE_URL cannot be used: {reason}."""

    code = "Catalog.UrlInvalid"
    remedy = "Correct it, see docs/catalog.md; without it the catalog is a file in REHOST_HOME."
    http_status = 503
    exit_code = 2


class CatalogVersionMismatch(RehostError):
    """The catalog's database has version {found}; this program works with version {wanted}."""

    code = "Catalog.VersionMismatch"
    remedy = (
        "Where the database is older, run `rehost db upgrade` (`rehost up` does it by itself); where it is newer, use "
        "the version of Rehost that wrote it."
    )
    http_status = 503
    exit_code = 75


class ApiUnreachable(RehostError):
    """No Rehost API answers at {url}: {reason}"""

    code = "Api.Unreachable"
    remedy = "Start the services with `make up`, or set REHOST_API_HOST and REHOST_API_PORT."
    retryable = True
    exit_code = 75

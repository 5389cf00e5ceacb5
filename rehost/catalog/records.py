"""What the catalog remembers, as frozen records that are also the JSON of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import Field

from rehost.catalog.job import JobSpec
from rehost.catalog.states import BusinessStatus, JobStatus, RunKind, RunStatus, SourceState
from rehost.source.connect import Connection
from rehost.source.inventory import Inventory, Record
from rehost.verification.report import Failure, Findings


class Figures(Record):
    """What one transfer moved; counts of files and bytes."""

    files_total: int = 0
    files_changed: int = 0
    bytes_scanned: int = 0
    bytes_new: int = 0
    bytes_on_wire: int = 0


class Source(Record):
    """A server that can be moved."""

    id: str
    name: str
    description: str | None
    connection: Connection
    tags: dict[str, str]
    state: SourceState
    status_info: str | None  # why it is unavailable and what to do
    inventory: Inventory
    created_at: datetime
    discovered_at: datetime


class Run(Record):
    """One pass of a job along the way from source to image."""

    id: str
    job_id: str
    source_id: str
    kind: RunKind
    status: RunStatus
    created_at: datetime
    started_at: datetime | None  # None: the flow has not begun
    ended_at: datetime | None
    snapshot_id: str | None
    image_ids: tuple[str, ...]
    files_total: int | None  # None: the transfer has not ended
    files_changed: int | None
    bytes_scanned: int | None
    bytes_new: int | None
    bytes_on_wire: int | None
    stage_seconds: dict[str, float]  # how long each stage took, all its tries; empty while it is under way
    flow_run_id: str | None
    error: Failure | None


class Snapshot(Record):
    """A snapshot in the store, and what it cost to take."""

    id: str
    source_id: str
    run_id: str
    created_at: datetime
    figures: Figures


class Image(Record):
    """An image that was built. `facts` is its image.json."""

    id: str
    kind: str  # disk or container
    name: str
    region_id: str
    source_id: str
    job_id: str | None  # None: not known; a job that is not there any more is named all the same
    run_id: str | None
    snapshot_id: str | None
    in_use: bool
    created_at: datetime
    facts: dict[str, Any]


class VerificationRecord(Findings):
    """One test of an image: the verification's own report once it has ended, and what it belongs to."""

    id: str
    job_id: str
    run_id: str  # the run that made the image
    image_id: str
    flow_run_id: str | None  # of a test that a user asked for; None: it is a stage of the run, or has no flow run yet
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class VerificationSummary(Record):
    """The newest verification of a job, in one line."""

    id: str
    image_id: str
    subject: str
    status: str
    created_at: datetime


class Job(JobSpec):
    """A job as it stands: what was asked for, and how far it is."""

    id: str
    name: str
    description: str | None
    valid_until: datetime
    status: JobStatus
    business_status: BusinessStatus | None  # while it is running
    version: int  # +1 with every change but those of progress; its ETag
    queued: bool  # its run waits for its turn; the job keeps its status until then
    progress: int  # percent of the present or last run
    eta_seconds: int | None  # of the whole run
    bytes_done: int | None  # of the stage that the run is at; None where it counts none
    bytes_total: int | None
    bytes_per_second: int | None  # over the last ten seconds
    status_info: str
    error: Failure | None
    next_run_at: datetime | None
    image_ids: tuple[str, ...]
    latest_verification: VerificationSummary | None
    created_at: datetime
    started_at: datetime | None  # of the present or last run
    ended_at: datetime | None
    prefect_url: str | None
    next_step: str


Item = TypeVar("Item")


class Page(Record, Generic[Item]):
    """A piece of a list; `next_cursor` leads to the next one, None at the end; `total` counts the whole list."""

    items: tuple[Item, ...]
    next_cursor: str | None = None
    total: int = Field(ge=0)

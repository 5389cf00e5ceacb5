"""Many sources or jobs from one CSV file: every row is answered for itself, and a bad one spoils no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api import launch, registration
from api.dependencies import Orchestration
from api.models import SourceSpec
from rehost.catalog import imports, sheet
from rehost.catalog.catalog import Catalog
from rehost.catalog.faults import Fault, fault_of, faults_of, raise_faults
from rehost.catalog.jobs import MAX_JOBS
from rehost.catalog.request import JobRequest, judge
from rehost.errors import (
    InvalidParameter,
    JobNameDuplicate,
    JobQuotaExceeded,
    RehostError,
    SourceHasUnfinishedJob,
    SourceNotFound,
)
from rehost.ids import new_id
from rehost.settings import Settings
from rehost.source.connect import DiskConnection, PathConnection, SshConnection

AT_ONCE = 16  # servers that are discovered at the same time; one that does not answer takes 15 seconds

Item = TypeVar("Item")


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ColumnFault(_Answer):
    """One thing that is wrong with a row."""

    column: str = Field(description="empty: the row as a whole")
    message: str
    code: str


class RowError(_Answer):
    """Why nothing was made of a row."""

    code: str
    message: str
    remedy: str
    retryable: bool
    errors: list[ColumnFault]


class ImportedSource(_Answer):
    """A source that a row stands for."""

    id: str
    name: str
    hostname: str


class ImportedJob(_Answer):
    """A job that was made of a row."""

    id: str
    name: str
    status: str
    queued: bool


class PlannedJob(_Answer):
    """What a job would do, in short."""

    hostname: str
    bytes_to_read: int
    estimated_seconds: int | None
    warnings: list[str]


class SourceRow(_Answer):
    """What became of one row: a new source, one that was known already, one that could be made (a dry run), or none."""

    row: int = Field(description="as a spreadsheet counts: the names of the columns are row 1")
    ok: bool
    outcome: Literal["created", "known", "valid", "failed"]
    source: ImportedSource | None = None
    error: RowError | None = None


class JobRow(_Answer):
    """What became of one row: a new job, one that could be made (a dry run), or none."""

    row: int = Field(description="as a spreadsheet counts: the names of the columns are row 1")
    ok: bool
    outcome: Literal["created", "valid", "failed"]
    job: ImportedJob | None = None
    plan: PlannedJob | None = Field(None, description="of a dry run")
    error: RowError | None = None


class ImportAnswer(_Answer, Generic[Item]):
    """Every row that is not blank, in the order of the file."""

    dry_run: bool
    items: list[Item]
    total: int
    succeeded: int
    failed: int


def import_sources(content: bytes, catalog: Catalog, *, dry_run: bool) -> ImportAnswer[SourceRow]:
    """Register a source for each row, many at once; a dry run checks the form alone and connects to nothing.

    Raises InvalidParameter for a file that is no such table.
    """
    rows = sheet.read(content, tuple(imports.SOURCE_COLUMNS))
    known = {_key(connection): source for connection, source in catalog.registered_sources()}
    first: dict[tuple[object, ...], int] = {}

    def look(row: sheet.Row) -> SourceRow | SourceSpec:
        """The request of a row; or its answer, where nobody has to be asked for it."""
        try:
            spec = _source_spec(row)
            key = _key(spec.connection)
            if (earlier := first.setdefault(key, row.number)) != row.number:
                raise_faults([Fault("/connection", f"is the server of row {earlier}")])
        except RehostError as error:
            return SourceRow(row=row.number, ok=False, outcome="failed", error=_source_error(error))
        if (there := known.get(key)) is not None:
            source = ImportedSource(id=there.id, name=there.name, hostname=there.hostname)
            return SourceRow(row=row.number, ok=True, outcome="known", source=source)
        return SourceRow(row=row.number, ok=True, outcome="valid") if dry_run else spec

    def make(number: int, wanted: SourceRow | SourceSpec) -> SourceRow:
        if isinstance(wanted, SourceRow):
            return wanted
        try:
            source = registration.register(wanted, catalog)
        except RehostError as error:
            return SourceRow(row=number, ok=False, outcome="failed", error=_source_error(error))
        made = ImportedSource(id=source.id, name=source.name, hostname=source.inventory.hostname)
        return SourceRow(row=number, ok=True, outcome="created", source=made)

    looked = [look(row) for row in rows]
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="discover") as pool:
        items = list(pool.map(make, [row.number for row in rows], looked))
    return _answer(items, dry_run=dry_run)


def _source_spec(row: sheet.Row) -> SourceSpec:
    body = imports.source_of(row)
    try:
        return SourceSpec.model_validate(body)
    except ValidationError as error:
        raise_faults(faults_of(error.errors(), body))
        raise


def _key(connection: SshConnection | PathConnection | DiskConnection) -> tuple[object, ...]:
    """What two connections to one server have in common."""
    if isinstance(connection, SshConnection):
        return "ssh", connection.host.lower(), connection.port, connection.proxy_jump
    return ("path", connection.root) if isinstance(connection, PathConnection) else ("disk", *connection.disks)


def import_jobs(
    content: bytes,
    catalog: Catalog,
    orchestration: Orchestration,
    settings: Settings,
    moment: datetime,
    *,
    dry_run: bool,
) -> ImportAnswer[JobRow]:
    """Make a job of each row, one after another, each started as its `execution` says; a dry run makes and starts none.

    Those that start now are a batch: as many of them run at once as of jobs that were started together.

    Raises InvalidParameter for a file that is no such table.
    """
    rows = sheet.read(content, tuple(imports.JOB_COLUMNS))
    earlier = _Earlier(catalog)
    batch_id = new_id("b")

    def make(row: sheet.Row) -> JobRow:
        try:
            request = _job_request(row, catalog)
            if not dry_run:
                judge(request, catalog, settings, moment)
                assert request.spec is not None
                job = launch.create_job(catalog, orchestration, request.spec, batch_id=batch_id)
                made = ImportedJob(id=job.id, name=job.name, status=job.status, queued=job.queued)
                return JobRow(row=row.number, ok=True, outcome="created", job=made)
            plan = judge(earlier.with_conflicts(request, row.number), catalog, settings, moment, dry_run=True)
        except RehostError as error:
            return JobRow(row=row.number, ok=False, outcome="failed", error=_job_error(error))
        planned = PlannedJob(
            hostname=plan.hostname,
            bytes_to_read=plan.bytes_to_read,
            estimated_seconds=plan.estimate.seconds,
            warnings=list(plan.warnings),
        )
        return JobRow(row=row.number, ok=True, outcome="valid", plan=planned)

    return _answer([make(row) for row in rows], dry_run=dry_run)


class _Earlier:
    """What the earlier rows of a dry run would hold, if jobs were made of them."""

    def __init__(self, catalog: Catalog) -> None:
        self._room = MAX_JOBS - catalog.jobs(limit=1).total
        self._sources: dict[str, int] = {}
        self._names: dict[tuple[str, str], int] = {}

    def with_conflicts(self, request: JobRequest, number: int) -> JobRequest:
        """The request, and what an earlier row takes from it."""
        spec = request.spec
        if spec is None:
            return request
        faults: list[Fault] = []
        if (row := self._sources.setdefault(spec.source_id, number)) != number:
            faults.append(fault_of(SourceHasUnfinishedJob(id=spec.source_id, job_id=f"of row {row}"), "/source_id"))
        if spec.name and (self._names.setdefault((spec.region_id, spec.name), number)) != number:
            faults.append(fault_of(JobNameDuplicate(region_id=spec.region_id, name=spec.name), "/name"))
        self._room -= 1
        if self._room < 0:
            faults.append(fault_of(JobQuotaExceeded(limit=MAX_JOBS), ""))
        return JobRequest(spec, (*request.faults, *faults), request.faulty)


def _job_request(row: sheet.Row, catalog: Catalog) -> JobRequest:
    body = imports.job_of(row)
    named = row.cells.get("source")
    if named is None:
        return JobRequest.of(body)
    ids = catalog.sources_named(named)
    request = JobRequest.of({**body, "source_id": ids[0] if ids else "none"})
    if len(ids) == 1:
        return request
    if ids:
        fault = Fault("/source_id", f"is the name of {len(ids)} sources: give the id of one")
    else:
        fault = fault_of(SourceNotFound(id=named), "/source_id")
    return JobRequest(request.spec, (*request.faults, fault), request.faulty | {"source_id"})


def _answer(items: Sequence[Any], *, dry_run: bool) -> ImportAnswer[Any]:
    succeeded = sum(item.ok for item in items)
    return ImportAnswer(
        dry_run=dry_run, items=list(items), total=len(items), succeeded=succeeded, failed=len(items) - succeeded
    )


def _source_error(error: RehostError) -> RowError:
    return _error(error, imports.places(imports.SOURCE_COLUMNS))


def _job_error(error: RehostError) -> RowError:
    return _error(error, imports.places(imports.JOB_COLUMNS))


def _error(error: RehostError, places: Mapping[str, str]) -> RowError:
    faults = [
        ColumnFault(column=sheet.column_at(pointer, places), message=message, code=next(iter(code), error.code))
        for pointer, message, *code in error.facts.get("errors", [])
    ]
    # A row has no pointers: its sentence names columns.
    told = "; ".join(f"{fault.column or 'the row'} {fault.message}" for fault in faults)
    message = f"{told}." if isinstance(error, InvalidParameter) and told else error.message
    remedy = "Correct these columns and send the row again." if isinstance(error, InvalidParameter) else error.remedy
    return RowError(code=error.code, message=message, remedy=remedy, retryable=error.retryable, errors=faults)

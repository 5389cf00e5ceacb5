"""Changes of jobs in the catalog: judged and written in one transaction, and put back where Prefect did not follow."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from rehost.catalog import rules
from rehost.catalog.changes import Decision, decide
from rehost.catalog.faults import Fault, raise_faults
from rehost.catalog.job import JobSpec
from rehost.catalog.jobs import Jobs, check_version, filled, image_name_of, job_row, locked_job, name_conflicts
from rehost.catalog.queue import queued_jobs
from rehost.catalog.records import Job
from rehost.catalog.sources import source_row
from rehost.catalog.states import ENDED, JobStatus
from rehost.catalog.tables import JobRow, JobTagRow
from rehost.regions.regions import region
from rehost.source.inventory import Inventory


@dataclass(frozen=True)
class Change:
    """A change that was written: the job before it and after it, and the fields in which they differ."""

    before: JobSpec
    written: JobSpec
    after: Job
    changed: frozenset[str]


class JobChanges(Jobs):
    """The part of the catalog that changes jobs."""

    def change_job(self, id: str, patch: object, moment: datetime, *, expected: int | None = None) -> Change:
        """Set what a merge patch says, or nothing where anything of it is refused.

        Raises JobNotFound, PreconditionFailed for a job of another version than the expected one, and the one error
        that tells all that is wrong (faults.raise_faults).
        """
        for attempt in range(2):
            try:
                with self._database.write() as session:
                    check_version(session, id, expected)
                    return self._change(session, locked_job(session, id), patch, moment)
            except IntegrityError:  # another writer took the name first (PostgreSQL); the second look tells so
                if attempt:
                    raise
        raise AssertionError("unreachable")

    def _change(self, session: Session, row: JobRow, patch: object, moment: datetime) -> Change:
        before = JobSpec.model_validate(row.spec)
        ordered = row.id in queued_jobs(session, [row.id])
        decision = decide(row.id, before, patch, JobStatus(row.status), ordered=ordered)
        raise_faults([*decision.faults, *self._faults(session, row, decision, moment)])
        source = source_row(session, row.source_id)
        written = filled(decision.spec, str(source.inventory.get("hostname", "")), moment)
        if decision.changed:
            _write(session, row, written)
        return Change(before, written, self.job_records(session, [row])[0], decision.changed)

    def _faults(self, session: Session, row: JobRow, decision: Decision, moment: datetime) -> list[Fault]:
        """What the rules and the names of other jobs say of the fields that change."""
        inventory = Inventory.model_validate(source_row(session, row.source_id).inventory)
        asked = rules.Asked(decision.spec, inventory, region(self._settings, row.region_id), moment)
        faults = rules.check(asked, changed=decision.changed, faulty=decision.faulty)
        if decision.changed & {"name", "targets"}:
            # A job that has ended holds no image name any more.
            faulty = decision.faulty | ({"targets"} if row.status in ENDED else set())
            faults += name_conflicts(session, decision.spec, but=row.id, faulty=faulty)
        return faults

    def take_change_back(self, id: str, change: Change) -> None:
        """Put a job back to what it was before a change, unless it was changed once more."""
        with self._database.write() as session:
            row = locked_job(session, id)
            # Not by the version: that moves with a start that was asked for and taken back, too.
            if change.changed and JobSpec.model_validate(row.spec) == change.written:
                _write(session, row, change.before)

    def schedule_anchor(self, id: str) -> datetime | None:
        """Since when the intervals of the job's schedule count; None: it has none. Raises JobNotFound."""
        with self._database.read() as session:
            return job_row(session, id).scheduled_since


def _write(session: Session, row: JobRow, spec: JobSpec) -> None:
    assert spec.name is not None and spec.valid_until is not None
    row.spec = spec.model_dump(mode="json")
    row.name, row.image_name, row.valid_until = spec.name, image_name_of(spec), spec.valid_until
    row.version += 1
    session.execute(delete(JobTagRow).where(JobTagRow.job_id == row.id))
    session.add_all(JobTagRow(job_id=row.id, key=key, value=value) for key, value in spec.tags.items())
    session.flush()

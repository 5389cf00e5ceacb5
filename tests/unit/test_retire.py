"""What housekeeping does with jobs that are over, and with tests that nobody does any more; Prefect has a stand-in."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from flows import orchestration, retire
from flows.orchestration import Seen
from rehost.catalog import retirement
from rehost.catalog.catalog import Catalog
from rehost.catalog.database import now
from rehost.catalog.records import Source
from rehost.catalog.states import JobStatus
from rehost.catalog.tables import JobRow, VerificationRow
from rehost.errors import JobNotFound, OrchestrationAway, StoreNoSpace
from rehost.settings import Settings, settings
from tests.unit.test_catalog_endings import waiting
from tests.unit.test_catalog_runs import source as source


class Prefect:
    """Stands in for flows.orchestration; what was asked of it is in `asked`."""

    def __init__(self) -> None:
        self.away = False
        self.state = "RUNNING"
        self.since: datetime | None = None
        self.asked: list[tuple[str, str]] = []

    def _ask(self, what: str, which: str) -> None:
        if self.away:
            raise OrchestrationAway(url="http://prefect", reason="refused")
        self.asked.append((what, which))

    async def cancel_run(self, flow_run_id: str) -> None:
        self._ask("cancel", flow_run_id)

    async def unschedule_job(self, job_id: str) -> None:
        self._ask("unschedule", job_id)

    async def end_run(self, flow_run_id: str, *, cancelled: bool) -> None:
        self._ask("end", flow_run_id)

    async def seen(self, flow_run_id: str) -> Seen:
        self._ask("seen", flow_run_id)
        return Seen(self.state, self.since)


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Prefect:
    stand_in = Prefect()
    for name in ("cancel_run", "unschedule_job", "end_run", "seen"):
        monkeypatch.setattr(orchestration, name, getattr(stand_in, name))
    return stand_in


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalog]:
    monkeypatch.setenv("REHOST_HOME", str(tmp_path))
    settings.cache_clear()
    with Catalog.open(settings()) as opened:
        yield opened
    monkeypatch.undo()
    settings.cache_clear()


def make_older(catalog: Catalog, days: int) -> None:
    with catalog._database.write() as session:
        past = now() - timedelta(days=days)
        session.execute(update(JobRow).values(valid_until=past))
        session.execute(update(JobRow).where(JobRow.expired_at.is_not(None)).values(expired_at=past))


def test_a_job_expires_loses_its_schedule_and_is_deleted_seven_days_later(
    catalog: Catalog, source: Source, prefect: Prefect
) -> None:
    job, image_id = waiting(catalog, source)
    catalog.scheduled(job.id, now())
    assert retire.retire_what_is_over() == 0
    make_older(catalog, 1)
    prefect.away = True
    assert retire.retire_what_is_over() == 1
    assert catalog.job(job.id).status is JobStatus.EXPIRED and catalog.is_scheduled(job.id)
    prefect.away = False
    assert retire.retire_what_is_over() == 1
    assert prefect.asked == [("unschedule", job.id)]
    assert not catalog.is_scheduled(job.id)
    assert retire.retire_what_is_over() == 0
    make_older(catalog, 6)
    assert retire.retire_what_is_over() == 0
    make_older(catalog, 7)
    assert retire.retire_what_is_over() == 1
    with pytest.raises(JobNotFound):
        catalog.job(job.id)
    assert catalog.image(image_id).job_id == job.id


def test_a_deletion_that_was_cut_off_is_completed(catalog: Catalog, source: Source, prefect: Prefect) -> None:
    job, _ = waiting(catalog, source)
    catalog.timed(job.id, "flow-timed")
    tests = catalog.ask_verification(job.id)
    catalog.attach_verifications([test.id for test in tests], "flow-test")
    evidence = settings().evidence_path / tests[0].id
    evidence.mkdir(parents=True)
    assert retire.retire_job(job.id) is None
    assert prefect.asked == [] and catalog.job(job.id).status is JobStatus.WAITING, "it is not over"
    catalog.begin_removal(job.id)
    assert retire.retire_what_is_over() == 1
    assert prefect.asked == [("cancel", "flow-timed"), ("cancel", "flow-test")]
    with pytest.raises(JobNotFound):
        catalog.job(job.id)
    assert not evidence.exists()
    assert retire.retire_job(job.id) is None, "it is gone"


def test_a_tracker_that_cannot_be_taken_off_keeps_no_job(
    catalog: Catalog, source: Source, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = waiting(catalog, source, disks={"block_replication": True, "change_tracking": True})
    asked: list[str] = []

    def remove(connection: object, job_id: str) -> str:
        asked.append(job_id)
        return "The change tracker could not be taken off."

    monkeypatch.setattr(retire, "remove_tracker", remove)
    catalog.begin_removal(job.id)
    assert retire.retire_job(job.id) == "The change tracker could not be taken off."
    assert asked == [job.id]
    with pytest.raises(JobNotFound):
        catalog.job(job.id)


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CRASHED", "CANCELLED", "GONE"])
def test_a_test_whose_flow_run_is_over_has_failed(
    catalog: Catalog, source: Source, prefect: Prefect, state: str
) -> None:
    job, _ = waiting(catalog, source)
    ids = [test.id for test in catalog.ask_verification(job.id)]
    catalog.claim_verifications(ids, "flow-9")
    prefect.away = True
    assert retire.end_lost_verifications() == 0
    prefect.away = False
    assert retire.end_lost_verifications() == 0
    prefect.state = state
    assert retire.end_lost_verifications() == 2
    error = catalog.verification(ids[0]).error
    assert error is not None and (error.code, state.capitalize() in error.message) == ("Verification.Crashed", True)
    assert catalog.job(job.id).status is JobStatus.WAITING


def test_a_test_whose_process_died_has_failed(catalog: Catalog, source: Source, prefect: Prefect) -> None:
    job, _ = waiting(catalog, source)
    one, other = [test.id for test in catalog.ask_verification(job.id)]
    catalog.claim_verifications([one, other], "flow-9")
    catalog.start_verification(one)
    owners = settings().scratch_path / "owners"
    owners.mkdir(parents=True)
    # Nobody lives at this number in this boot: process ids are at most 2^22.
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    (owners / one).write_text(f"{platform.node()} {boot_id} 4194304 1")
    assert retire.end_lost_verifications() == 1
    assert ("end", "flow-9") in prefect.asked
    assert [catalog.verification(id).status for id in (one, other)] == ["failed", "pending"]


def test_a_test_whose_flow_run_was_never_made_has_failed_after_a_while(
    catalog: Catalog, source: Source, prefect: Prefect
) -> None:
    job, _ = waiting(catalog, source)
    catalog.ask_verification(job.id)
    assert retire.end_lost_verifications() == 0
    with catalog._database.write() as session:
        session.execute(update(VerificationRow).values(created_at=now() - timedelta(minutes=11)))
    assert retire.end_lost_verifications() == 2
    assert prefect.asked == []


def test_a_test_that_a_worker_took_and_never_began_has_failed(
    catalog: Catalog, source: Source, prefect: Prefect
) -> None:
    job, _ = waiting(catalog, source)
    ids = [test.id for test in catalog.ask_verification(job.id)]
    catalog.attach_verifications(ids, "flow-9")
    prefect.state, prefect.since = "PENDING", now() - timedelta(seconds=90)
    assert retire.end_lost_verifications() == 0
    prefect.since = now() - timedelta(seconds=130)
    assert retire.end_lost_verifications() == 2
    assert ("end", "flow-9") in prefect.asked
    assert catalog.verification(ids[0]).status == "failed"
    catalog.ask_verification(job.id)  # nothing stands in its way any more


def test_a_job_whose_end_fails_keeps_no_other_from_ending(
    catalog: Catalog, source: Source, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = waiting(catalog, source)
    catalog.begin_removal(first.id)
    second, _ = waiting(catalog, source, name="second")
    catalog.begin_removal(second.id)
    forget = retirement.forget_job

    def fail(opened: Catalog, configured: Settings, job_id: str) -> None:
        if job_id == first.id:
            raise RuntimeError("nobody expected this")
        forget(opened, configured, job_id)

    monkeypatch.setattr(retirement, "forget_job", fail)
    with pytest.raises(RuntimeError, match="nobody expected this"):
        retire.retire_what_is_over()
    with pytest.raises(JobNotFound):
        catalog.job(second.id)


def test_a_source_that_cannot_be_entered_keeps_no_job(
    catalog: Catalog, source: Source, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = waiting(catalog, source, disks={"block_replication": True, "change_tracking": True})

    def remove(connection: object, job_id: str) -> str:
        raise StoreNoSpace(needed=1, free=0, path="/")

    monkeypatch.setattr(retire, "remove_tracker", remove)
    catalog.begin_removal(job.id)
    assert retire.retire_job(job.id) != ""
    with pytest.raises(JobNotFound):
        catalog.job(job.id)

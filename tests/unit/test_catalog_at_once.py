"""The catalog under many hands: threads and processes that want the same thing at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from rehost.catalog import jobs as jobs_module
from rehost.catalog.catalog import Catalog
from rehost.catalog.idempotency import Answer
from rehost.catalog.job import JobSpec
from rehost.catalog.records import Job
from rehost.catalog.states import JobStatus, RunStatus
from rehost.catalog.tables import JobRow, RunRow
from rehost.errors import StoreNoSpace
from rehost.ids import new_id
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.at_once import outcomes

_INVENTORY = Inventory(hostname="web1", os_id="debian", architecture="x86_64")

Together = Callable[..., dict[str, int]]


@pytest.fixture
def together(database_url: str, tmp_path: Path, catalog: Catalog) -> Together:
    """What the actions gave that were done all at once, and how often; each is called with a catalog."""
    return lambda *actions: dict(outcomes(database_url, tmp_path, *actions))


def new_source(catalog: Catalog) -> str:
    return catalog.add_source(PathConnection(root="/srv/web1"), _INVENTORY).id


def new_job(catalog: Catalog, source_id: str, **fields: object) -> Job:
    return catalog.create_job(JobSpec.model_validate({"source_id": source_id, "region_id": "local", **fields}))


def test_of_twenty_starts_at_once_one_makes_a_run(catalog: Catalog, together: Together) -> None:
    job = new_job(catalog, new_source(catalog))

    def start(catalog: Catalog) -> str:
        return str(catalog.begin_run(job.id, kind="manual").status)

    assert together(*[start] * 20) == {"pending": 1, "Job.InvalidStatus": 19}
    assert catalog.runs(job.id).total == 1


def test_of_twenty_flow_runs_at_once_one_gets_the_job(catalog: Catalog, together: Together) -> None:
    job = new_job(catalog, new_source(catalog), incremental={"interval_hours": 1})

    def claim(number: int) -> Callable[[Catalog], str]:
        def action(catalog: Catalog) -> str:
            return str(catalog.claim_run(job.id, flow_run_id=f"flow-{number}", kind="schedule").status)

        return action

    assert together(*map(claim, range(20))) == {"running": 1, "Job.InvalidStatus": 19}
    assert catalog.runs(job.id).total == 1


def test_of_twenty_jobs_at_once_for_a_source_one_is_made(catalog: Catalog, together: Together) -> None:
    source_id = new_source(catalog)

    def create(catalog: Catalog) -> str:
        new_job(catalog, source_id)
        return "made"

    assert together(*[create] * 20) == {"made": 1, "Source.HasUnfinishedJob": 19}
    assert catalog.jobs().total == 1


def test_of_twenty_jobs_at_once_with_a_name_one_is_made(catalog: Catalog, together: Together) -> None:
    def create(source_id: str) -> Callable[[Catalog], str]:
        def action(catalog: Catalog) -> str:
            new_job(catalog, source_id, name="web")
            return "made"

        return action

    found = together(*[create(new_source(catalog)) for _ in range(20)])
    assert (found.pop("made"), sum(found.values())) == (1, 19)
    assert set(found) <= {"JobName.Duplicate", "ImageName.UsedByJob", "InvalidParameter"}


def test_no_more_jobs_are_made_at_once_than_may_be(
    catalog: Catalog, together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_JOBS", 5)

    def create(source_id: str) -> Callable[[Catalog], str]:
        def action(catalog: Catalog) -> str:
            new_job(catalog, source_id)
            return "made"

        return action

    found = together(*[create(new_source(catalog)) for _ in range(12)])
    assert found == {"made": 5, "QuotaExceeded.Job": 7}
    assert catalog.jobs().total == 5


def test_of_twenty_requests_at_once_with_a_key_one_is_done(catalog: Catalog, together: Together) -> None:
    source_ids = [new_source(catalog) for _ in range(20)]

    def request(source_id: str) -> Callable[[Catalog], str]:
        def action(catalog: Catalog) -> str:
            if (answer := catalog.reserve_key("key-1", "fingerprint")) is not None:
                return f"answered {answer.status}"
            job = new_job(catalog, source_id)
            catalog.settle_key("key-1", Answer(201, {"id": job.id}, None))
            return "done"

        return action

    found = together(*map(request, source_ids))
    assert found.pop("done") == 1
    assert set(found) <= {"IdempotencyKey.Busy", "answered 201"}
    assert catalog.jobs().total == 1


@pytest.mark.parametrize("round", range(3))
def test_a_run_that_ends_in_three_ways_at_once_has_one_end(catalog: Catalog, together: Together, round: int) -> None:
    job = new_job(catalog, new_source(catalog), verification={"enabled": False})
    run = catalog.claim_run(job.id, flow_run_id="flow-1")
    catalog.add_image(job.id, run.id, _INVENTORY, id=new_id("m"), kind="disk", name="web")
    catalog.set_stage(job.id, "Syncing")

    def stop(catalog: Catalog) -> str:
        catalog.request_stop(job.id)
        return catalog.stop_run(run.id).status

    actions: list[Callable[[Catalog], str]] = [
        lambda catalog: catalog.finish_run(run.id).status,
        lambda catalog: catalog.fail_run(run.id, StoreNoSpace(path="/s")).status,
        stop,
    ]
    found = together(*actions * 3)
    found.pop("Job.InvalidStatus", None)  # a stop that came after the end
    assert len(found) == 1, "every answer tells the same end"
    ended, job = RunStatus(next(iter(found))), catalog.job(job.id)
    assert catalog.run(run.id).status is ended
    expected = {
        RunStatus.SUCCEEDED: JobStatus.FINISHED,
        RunStatus.FAILED: JobStatus.IN_ERROR,
        RunStatus.STOPPED: JobStatus.STOPPED,
    }
    assert (job.status, job.error is not None) == (expected[ended], ended is RunStatus.FAILED)


def test_a_run_is_claimed_or_withdrawn(catalog: Catalog, together: Together) -> None:
    for _ in range(3):
        job = new_job(catalog, new_source(catalog))
        run = catalog.begin_run(job.id, kind="manual")
        together(
            lambda catalog, job=job: str(catalog.claim_run(job.id, flow_run_id="flow-" + job.id).status),
            lambda catalog, run=run: str(catalog.withdraw_run(run.id)),
        )
        under_way = [one for one in catalog.runs(job.id).items if one.status is RunStatus.RUNNING]
        assert len(under_way) == 1, "the claim finds the run, or begins its own after it was withdrawn"
        assert catalog.job(job.id).status is JobStatus.RUNNING


def test_a_start_takes_its_turn_after_a_change(catalog: Catalog, together: Together) -> None:
    """Stops and starts of a waiting job in any order leave a job and a run that fit each other."""
    job = new_job(catalog, new_source(catalog), incremental={"interval_hours": 1})
    with catalog._database.write() as session:
        row = session.get(JobRow, job.id)
        assert row is not None
        row.status = JobStatus.WAITING

    def stop(catalog: Catalog) -> str:
        return "stopped" if catalog.request_stop(job.id) is None else "asked"

    def start(catalog: Catalog) -> str:
        return catalog.begin_run(job.id, kind="manual").status

    found = together(*[stop, start] * 5)
    assert found["pending"] == 1
    assert catalog.job(job.id).status is JobStatus.RUNNING
    assert catalog.runs(job.id).total == 1


def test_the_database_itself_has_one_run_under_way_for_a_job_that_is_there(catalog: Catalog) -> None:
    job = new_job(catalog, new_source(catalog))
    run = catalog.begin_run(job.id, kind="manual")
    values = {"job_id": job.id, "source_id": run.source_id, "kind": "manual", "previous_status": "Ready"}
    with pytest.raises(IntegrityError), catalog._database.write() as session:
        session.execute(insert(RunRow).values(id="r-2", status="running", created_at=run.created_at, **values))
    with pytest.raises(IntegrityError), catalog._database.write() as session:
        elsewhere = {**values, "job_id": "j-none"}
        session.execute(insert(RunRow).values(id="r-2", status="failed", created_at=run.created_at, **elsewhere))
    with catalog._database.write() as session:
        session.execute(insert(RunRow).values(id="r-2", status="failed", created_at=run.created_at, **values))

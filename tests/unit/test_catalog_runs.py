"""Runs: one start wins, a run ends once, the job's state follows, nothing goes backwards."""

from __future__ import annotations

import threading

import pytest
from pydantic import BaseModel

from rehost.catalog.catalog import Catalog
from rehost.catalog.job import JobSpec
from rehost.catalog.records import Figures, Job, Run, Source
from rehost.catalog.states import TRANSITIONS, BusinessStatus, JobStatus, RunKind, RunStatus, startable
from rehost.errors import (
    JobInvalidBusinessStatus,
    JobInvalidStatus,
    JobNotFound,
    RunIncomplete,
    SourceUnreachable,
    StoreNoSpace,
)
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from rehost.verification.report import VerificationReport


class Facts(BaseModel):
    """Stands for an image.json."""

    size: int = 1


@pytest.fixture
def source(catalog: Catalog) -> Source:
    inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
    return catalog.add_source(PathConnection(root="/srv/web1"), inventory)


def make_job(catalog: Catalog, source: Source, **fields: object) -> Job:
    return catalog.create_job(JobSpec.model_validate({"source_id": source.id, "region_id": "local", **fields}))


def started(catalog: Catalog, job: Job, flow_run_id: str = "flow-1") -> Run:
    catalog.begin_run(job.id, kind="manual")
    return catalog.claim_run(job.id, flow_run_id=flow_run_id)


def complete(catalog: Catalog, job: Job, run: Run) -> None:
    image_id = "m-" + run.id[2:]
    catalog.add_image(job.id, run.id, Facts(), id=image_id, kind="disk", name=catalog.image_name(job.id))
    catalog.add_verification(job.id, run.id, image_id, VerificationReport(subject="bios", status="succeeded"))


def put_into(catalog: Catalog, job: Job, status: JobStatus) -> None:
    with catalog._database.write() as session:
        from rehost.catalog.tables import JobRow

        row = session.get(JobRow, job.id)
        assert row is not None
        row.status = status


def test_of_many_starts_at_once_one_makes_a_run(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def start() -> None:
        barrier.wait(10)
        try:
            catalog.begin_run(job.id, kind="manual")
            outcomes.append("begun")
        except JobInvalidStatus:
            outcomes.append("refused")

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["begun"] + ["refused"] * 7
    assert catalog.runs(job.id).total == 1


@pytest.mark.parametrize("kind", list(RunKind))
@pytest.mark.parametrize("status", list(JobStatus))
def test_a_run_begins_in_the_states_of_the_table_alone(
    catalog: Catalog, source: Source, status: JobStatus, kind: RunKind
) -> None:
    job = make_job(catalog, source)
    put_into(catalog, job, status)
    if status in startable(kind):
        assert catalog.begin_run(job.id, kind=kind).status is RunStatus.PENDING
        assert catalog.job(job.id).status is JobStatus.RUNNING
    else:
        with pytest.raises(JobInvalidStatus, match=status):
            catalog.begin_run(job.id, kind=kind)
        assert catalog.job(job.id).status is status
        assert catalog.runs(job.id).total == 0


def test_no_schedule_starts_what_a_user_stopped() -> None:
    assert JobStatus.STOPPED in startable(RunKind.MANUAL)
    assert JobStatus.STOPPED not in startable(RunKind.SCHEDULE)


def test_every_transition_leads_from_a_state_to_states() -> None:
    assert set(TRANSITIONS) == set(JobStatus)
    assert JobStatus.RUNNING not in TRANSITIONS[JobStatus.FINISHED]
    assert JobStatus.DELETING not in TRANSITIONS[JobStatus.RUNNING]


def test_a_flow_claims_the_run_that_was_begun_for_it(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    begun = catalog.begin_run(job.id, kind="manual")
    claimed = catalog.claim_run(job.id, flow_run_id="flow-1")
    assert claimed.id == begun.id
    assert claimed.status is RunStatus.RUNNING
    assert catalog.run_of_flow_run("flow-1") == claimed
    catalog.attach_flow_run(begun.id, "flow-1")
    assert catalog.claim_run(job.id, flow_run_id="flow-1").id == begun.id, "the same flow run, tried again"
    with pytest.raises(JobInvalidStatus):
        catalog.claim_run(job.id, flow_run_id="flow-2")


def test_a_flow_run_of_a_schedule_begins_its_own_run(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source, incremental={"interval_hours": 1})
    run = catalog.claim_run(job.id, flow_run_id="flow-1", kind="schedule")
    assert run.kind is RunKind.SCHEDULE
    assert catalog.job(job.id).status is JobStatus.RUNNING


def test_a_flow_run_that_is_tried_again_after_its_failure_gets_a_new_run(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    first = started(catalog, job)
    catalog.fail_run(first.id, StoreNoSpace(path="/s"))
    second = catalog.claim_run(job.id, flow_run_id="flow-1")
    assert second.id != first.id
    assert catalog.job(job.id).error is None


def test_a_withdrawn_run_leaves_the_job_as_it_was(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    catalog.fail_run(started(catalog, job).id, StoreNoSpace(path="/s"))
    before = catalog.job(job.id)
    run = catalog.begin_run(job.id, kind="manual")
    catalog.withdraw_run(run.id)
    after = catalog.job(job.id)
    assert after.version > before.version, "who saw it between has seen another job"
    assert after.model_copy(update={"version": before.version}) == before
    assert catalog.runs(job.id).total == 1


def test_a_claimed_run_is_not_withdrawn(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    run = started(catalog, job)
    catalog.withdraw_run(run.id)
    assert catalog.job(job.id).status is JobStatus.RUNNING
    assert catalog.run(run.id).status is RunStatus.RUNNING


@pytest.mark.parametrize(
    ("incremental", "expected"), [(None, JobStatus.FINISHED), ({"interval_hours": 6}, JobStatus.WAITING)]
)
def test_a_run_that_did_all_finishes_the_job_or_lets_it_wait(
    catalog: Catalog, source: Source, incremental: dict[str, int] | None, expected: JobStatus
) -> None:
    job = make_job(catalog, source, incremental=incremental)
    run = started(catalog, job)
    complete(catalog, job, run)
    assert catalog.finish_run(run.id).status is RunStatus.SUCCEEDED
    after = catalog.job(job.id)
    assert (after.status, after.progress, after.business_status) == (expected, 100, None)
    assert after.latest_verification is not None
    assert after.latest_verification.status == "succeeded"
    assert after.ended_at is not None


def test_nothing_is_finished_that_was_not_built_and_verified(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    run = started(catalog, job)
    with pytest.raises(RunIncomplete, match="disk image"):
        catalog.finish_run(run.id)
    image = catalog.add_image(job.id, run.id, Facts(), id="m-" + "a" * 20, kind="disk", name="x1")
    with pytest.raises(RunIncomplete, match="verification"):
        catalog.finish_run(run.id)
    catalog.add_verification(job.id, run.id, image.id, VerificationReport(subject="bios", status="succeeded"))
    catalog.add_verification(job.id, run.id, image.id, VerificationReport(subject="uefi", status="failed"))
    with pytest.raises(RunIncomplete, match="verification"):
        catalog.finish_run(run.id)
    catalog.add_verification(job.id, run.id, image.id, VerificationReport(subject="uefi", status="succeeded"))
    assert catalog.job(job.id).status is JobStatus.RUNNING
    catalog.finish_run(run.id)
    assert catalog.job(job.id).status is JobStatus.FINISHED


def test_a_job_without_verification_finishes_with_its_images(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source, verification={"enabled": False})
    run = started(catalog, job)
    catalog.add_image(job.id, run.id, Facts(), id="m-" + "a" * 20, kind="disk", name="x1")
    catalog.finish_run(run.id)
    assert catalog.job(job.id).status is JobStatus.FINISHED


def test_a_failed_run_tells_why_and_what_to_do(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    error = SourceUnreachable(host="web1", reason="refused")
    catalog.fail_run(started(catalog, job).id, error)
    after = catalog.job(job.id)
    assert after.status is JobStatus.IN_ERROR
    assert after.error is not None
    assert (after.error.code, after.error.remedy, after.error.retryable) == (error.code, error.remedy, True)
    assert after.status_info == error.message


def test_a_run_ends_once_and_the_first_end_decides(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    run = started(catalog, job)
    catalog.stop_run(run.id)
    catalog.fail_run(run.id, StoreNoSpace(path="/s"))
    catalog.finish_run(run.id)
    assert catalog.run(run.id).status is RunStatus.STOPPED
    assert catalog.job(job.id).status is JobStatus.STOPPED


def test_an_old_run_that_ends_late_does_not_touch_the_new_one(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    old = started(catalog, job, "flow-1")
    catalog.stop_run(old.id)
    started(catalog, job, "flow-2")
    catalog.fail_run(old.id, StoreNoSpace(path="/s"))
    assert catalog.job(job.id).status is JobStatus.RUNNING


def test_progress_never_goes_back_within_a_run_and_starts_anew_with_the_next(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    run = started(catalog, job)
    seen = []
    for percent in (5, 40.9, 20, 41, 400, -3):
        catalog.set_progress(job.id, percent, 12.5)
        seen.append(catalog.job(job.id).progress)
    assert seen == [5, 40, 40, 41, 100, 100]
    catalog.stop_run(run.id)
    catalog.set_progress(job.id, 3)
    assert catalog.job(job.id).progress == 100, "a job that is not running is left alone"
    started(catalog, job, "flow-2")
    assert catalog.job(job.id).progress == 0


def test_stages_are_of_a_running_job_alone(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    with pytest.raises(JobInvalidStatus):
        catalog.set_stage(job.id, "Syncing")
    started(catalog, job)
    assert catalog.job(job.id).business_status is BusinessStatus.PREPARING
    catalog.set_stage(job.id, "Processing")
    assert catalog.job(job.id).business_status is BusinessStatus.PROCESSING
    with pytest.raises(JobNotFound):
        catalog.set_stage("j-none", "Syncing")


def test_a_stop_is_granted_while_syncing_and_while_waiting(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source, incremental={"interval_hours": 1})
    with pytest.raises(JobInvalidStatus, match="Ready"):
        catalog.request_stop(job.id)
    run = started(catalog, job)
    with pytest.raises(JobInvalidBusinessStatus, match="Preparing"):
        catalog.request_stop(job.id)
    catalog.set_stage(job.id, "Syncing")
    asked = catalog.request_stop(job.id)
    assert asked is not None
    assert asked.id == run.id
    assert catalog.job(job.id).status is JobStatus.RUNNING, "it has not stopped before the flow says so"
    assert "stop" in catalog.job(job.id).status_info
    catalog.stop_run(run.id)
    assert catalog.job(job.id).status is JobStatus.STOPPED
    put_into(catalog, job, JobStatus.WAITING)
    assert catalog.request_stop(job.id) is None
    assert catalog.job(job.id).status is JobStatus.STOPPED


def test_the_parent_of_the_next_snapshot_is_the_newest_complete_one(catalog: Catalog, source: Source) -> None:
    assert catalog.latest_snapshot(source.id) is None
    job = make_job(catalog, source)
    run = started(catalog, job)
    figures = Figures(files_total=3, bytes_on_wire=17)
    catalog.record_snapshot(run.id, "n-one", figures)
    catalog.record_snapshot(run.id, "n-one", Figures())
    assert catalog.latest_snapshot(source.id) == "n-one"
    catalog.fail_run(run.id, StoreNoSpace(path="/s"))
    second = started(catalog, job, "flow-2")
    assert catalog.latest_snapshot(source.id) == "n-one"
    catalog.record_snapshot(second.id, "n-two", figures)
    assert catalog.latest_snapshot(source.id) == "n-two"
    assert catalog.run(second.id).bytes_on_wire == 17
    assert catalog.run(run.id).snapshot_id == "n-one"


def test_runs_under_way_are_found_for_housekeeping(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    run = catalog.begin_run(job.id, kind="manual")
    assert [r.id for r in catalog.runs_under_way()] == [run.id]
    catalog.claim_run(job.id, flow_run_id="flow-1")
    assert [r.flow_run_id for r in catalog.runs_under_way()] == ["flow-1"]
    catalog.stop_run(run.id)
    assert catalog.runs_under_way() == []


def test_each_image_of_a_job_gets_a_name_of_its_own(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source, name="web", incremental={"interval_hours": 1})
    names = []
    for number in range(3):
        run = started(catalog, job, f"flow-{number}")
        names.append(catalog.image_name(job.id))
        complete(catalog, job, run)
        catalog.finish_run(run.id)
    assert names == ["web", f"web_{job.id}", f"web_{job.id}_2"]
    assert len(catalog.job(job.id).image_ids) == 3


def test_an_incremental_job_whose_run_was_done_before_its_stop_came_is_stopped(
    catalog: Catalog, source: Source
) -> None:
    job = make_job(catalog, source, incremental={"interval_hours": 1})
    run = started(catalog, job)
    catalog.set_stage(job.id, "Syncing")
    assert catalog.request_stop(job.id) == catalog.run(run.id)
    complete(catalog, job, run)
    assert catalog.finish_run(run.id).status is RunStatus.SUCCEEDED
    # Its schedule went with the stop: as Waiting it would wait for nothing.
    assert (catalog.job(job.id).status, catalog.stop_run(run.id).status) == (JobStatus.STOPPED, RunStatus.SUCCEEDED)

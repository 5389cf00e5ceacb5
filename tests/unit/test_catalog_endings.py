"""Verifications that are asked for, cut-over, expiry and removal: what the catalog allows, and what is left."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from pydantic import BaseModel
from sqlalchemy import text

from rehost.catalog.catalog import Catalog
from rehost.catalog.database import now
from rehost.catalog.records import Figures, Job, Run, Source
from rehost.catalog.standing import DELETED_AFTER
from rehost.catalog.states import JobStatus, RunStatus
from rehost.catalog.tables import JobRow
from rehost.errors import (
    ImageNotVerified,
    JobInvalidStatus,
    JobNoImage,
    JobNotFound,
    StoreNoSpace,
    VerificationCrashed,
    VerificationNotFound,
    VerificationUnderWay,
)
from rehost.verification.report import VerificationReport
from tests.unit.test_catalog_runs import make_job, put_into, source as source, started


class DiskFacts(BaseModel):
    """What of a disk's image.json tells its tests."""

    kind: str = "disk"
    boot_modes: tuple[str, ...] = ("bios", "uefi")
    disks: tuple[dict[str, str], ...] = ({"location": "/images/web1.qcow2"},)


class ContainerFacts(BaseModel):
    """What of a container's image.json tells its test."""

    kind: str = "container"
    reference: str = "shop/web1:v1"


def built(catalog: Catalog, job: Job, run: Run, status: str = "succeeded") -> str:
    """A disk image of the run, with its tests."""
    image_id = "m-" + run.id[2:]
    catalog.add_image(job.id, run.id, DiskFacts(), id=image_id, kind="disk", name=catalog.image_name(job.id))
    for subject in ("web1.qcow2 (bios)", "web1.qcow2 (uefi)"):
        test = catalog.begin_stage_verification(image_id, subject)
        catalog.end_verification(test.id, report(subject, status))
    return image_id


def report(subject: str, status: str) -> VerificationReport:
    return VerificationReport.model_validate({"subject": subject, "status": status})


def version(catalog: Catalog, job: Job) -> int:
    with catalog._database.read() as session:
        row = session.get(JobRow, job.id)
        assert row is not None
        return row.version


def waiting(catalog: Catalog, source: Source, **fields: object) -> tuple[Job, str]:
    """An incremental job after its first run, and its image."""
    job = make_job(catalog, source, **{"incremental": {"interval_hours": 1}, **fields})
    run = started(catalog, job)
    image_id = built(catalog, job, run)
    catalog.finish_run(run.id)
    return catalog.job(job.id), image_id


# --- verify -------------------------------------------------------------------------------------------------------


def test_the_newest_images_are_tested_again_by_each_firmware(catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    second = started(catalog, job, "flow-2")
    image_id = built(catalog, job, second)
    catalog.add_image(job.id, second.id, ContainerFacts(), id="m-" + "c" * 20, kind="container", name="shop/web1:v1")
    catalog.finish_run(second.id)
    before = version(catalog, job)
    tests = catalog.ask_verification(job.id)
    assert [(test.subject, test.status, test.started_at) for test in sorted(tests, key=lambda test: test.subject)] == [
        ("shop/web1:v1", "pending", None),
        ("web1.qcow2 (bios)", "pending", None),
        ("web1.qcow2 (uefi)", "pending", None),
    ]
    assert catalog.images_being_verified() == {image_id, "m-" + "c" * 20}
    assert version(catalog, job) > before
    shown = catalog.job(job.id)
    assert (shown.status, shown.latest_verification and shown.latest_verification.status) == ("Waiting", "pending")
    assert "tested again" in shown.status_info


def test_a_test_that_was_asked_for_goes_its_way_and_its_first_end_decides(catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    one, other = catalog.ask_verification(job.id)
    assert {test.id for test in catalog.verifications_under_way()} == {one.id, other.id}
    catalog.attach_verifications([one.id, other.id], "flow-9")
    claimed = catalog.claim_verifications([one.id, other.id, "v-none"], "flow-9")
    assert [test.id for test in claimed] == [one.id, other.id]
    catalog.start_verification(one.id)
    running = catalog.verification(one.id)
    assert (running.status, running.flow_run_id) == ("running", "flow-9")
    assert running.started_at is not None and running.ended_at is None
    ended = catalog.end_verification(one.id, report(one.subject, "succeeded"))
    assert ended.status == "succeeded" and ended.ended_at is not None
    assert catalog.fail_verification(one.id, VerificationCrashed(reason="late")).status == "succeeded"
    failed = catalog.fail_verification(other.id, VerificationCrashed(reason="its process died"))
    assert failed.error is not None and failed.error.code == "Verification.Crashed"
    assert catalog.end_verification(other.id, report(other.subject, "succeeded")).status == "failed"
    assert catalog.verifications_under_way() == catalog.verifications_of_flow_run("flow-9") == []
    assert catalog.images_being_verified() == set()
    assert catalog.claim_verifications([one.id, other.id], "flow-9") == []
    assert len(catalog.ask_verification(job.id)) == 2, "now it may be asked for again"


def test_of_many_who_ask_at_once_one_is_granted(catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    barrier = threading.Barrier(6)
    outcomes: list[str] = []

    def ask() -> None:
        barrier.wait(10)
        try:
            catalog.ask_verification(job.id)
            outcomes.append("granted")
        except VerificationUnderWay:
            outcomes.append("refused")

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["granted"] + ["refused"] * 5
    assert len(catalog.verifications_under_way()) == 2


def test_a_test_is_refused_where_there_is_nothing_to_test(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source, incremental={"interval_hours": 1})
    with pytest.raises(JobInvalidStatus, match="Waiting, Finished"):
        catalog.ask_verification(job.id)
    put_into(catalog, job, JobStatus.WAITING)
    with pytest.raises(JobNoImage):
        catalog.ask_verification(job.id)
    with pytest.raises(VerificationNotFound):
        catalog.verification("v-none")
    with pytest.raises(JobNotFound):
        catalog.ask_verification("j-none")


def test_a_test_whose_flow_run_cannot_be_had_is_forgotten(catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    ids = [test.id for test in catalog.ask_verification(job.id)]
    assert catalog.withdraw_verifications(ids)
    assert catalog.verifications_under_way() == []
    ids = [test.id for test in catalog.ask_verification(job.id)]
    catalog.claim_verifications(ids, "flow-9")
    assert not catalog.withdraw_verifications(ids), "only the answer was lost"
    assert len(catalog.verifications_under_way()) == 2


@pytest.mark.parametrize("ended", ["fail_run", "stop_run"])
def test_a_test_that_is_a_stage_ends_with_its_run(catalog: Catalog, source: Source, ended: str) -> None:
    job = make_job(catalog, source)
    run = started(catalog, job)
    catalog.add_image(job.id, run.id, DiskFacts(), id="m-" + "a" * 20, kind="disk", name="x1")
    test = catalog.begin_stage_verification("m-" + "a" * 20, "x1.qcow2 (bios)")
    assert test.status == "running"
    assert catalog.verifications_under_way() == [], "housekeeping looks at its run"
    if ended == "fail_run":
        catalog.fail_run(run.id, StoreNoSpace(path="/s"))
    else:
        catalog.stop_run(run.id)
    after = catalog.verification(test.id)
    assert after.status == "failed"
    assert after.error is not None and after.error.code == "Verification.Crashed"


# --- cut-over -----------------------------------------------------------------------------------------------------


def test_a_cut_over_finishes_a_waiting_job_and_no_schedule_starts_it_again(catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    before = version(catalog, job)
    catalog.cut_over(job.id)
    assert catalog.job(job.id).status is JobStatus.FINISHED
    assert version(catalog, job) > before
    with pytest.raises(JobInvalidStatus):
        catalog.claim_run(job.id, flow_run_id="flow-2", kind="schedule")
    with pytest.raises(JobInvalidStatus, match="cut-over is allowed in Waiting"):
        catalog.cut_over(job.id)


def test_nothing_is_cut_over_to_that_is_not_there_or_not_proven(catalog: Catalog, source: Source) -> None:
    job, image_id = waiting(catalog, source)
    tests = catalog.ask_verification(job.id)
    with pytest.raises(ImageNotVerified, match=image_id):
        catalog.cut_over(job.id)
    for test in tests:
        catalog.end_verification(test.id, report(test.subject, "failed"))
    with pytest.raises(ImageNotVerified):
        catalog.cut_over(job.id)
    for test in catalog.ask_verification(job.id):
        catalog.end_verification(test.id, report(test.subject, "succeeded"))
    with catalog._database.write() as session:
        session.execute(text("UPDATE images SET kind = 'container'"))
    with pytest.raises(JobNoImage, match="disk image"):
        catalog.cut_over(job.id)
    with catalog._database.write() as session:
        session.execute(text("UPDATE images SET kind = 'disk'"))
    catalog.cut_over(job.id)


def test_a_job_without_verification_is_cut_over_with_its_image_alone(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source, incremental={"interval_hours": 1}, verification={"enabled": False})
    run = started(catalog, job)
    catalog.add_image(job.id, run.id, DiskFacts(), id="m-" + "a" * 20, kind="disk", name="x1")
    catalog.finish_run(run.id)
    catalog.cut_over(job.id)
    assert catalog.job(job.id).status is JobStatus.FINISHED


def test_the_run_of_a_cut_over_finishes_the_job_and_a_failed_one_does_not(catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    catalog.begin_run(job.id, kind="cut_over")
    run = catalog.claim_run(job.id, flow_run_id="flow-2", kind="cut_over")
    catalog.fail_run(run.id, StoreNoSpace(path="/s"))
    assert catalog.job(job.id).status is JobStatus.IN_ERROR
    with pytest.raises(JobInvalidStatus):
        catalog.begin_run(job.id, kind="cut_over")
    again = started(catalog, job, "flow-3")
    built(catalog, job, again)
    catalog.finish_run(again.id)
    assert catalog.job(job.id).status is JobStatus.WAITING
    catalog.begin_run(job.id, kind="cut_over")
    last = catalog.claim_run(job.id, flow_run_id="flow-4", kind="cut_over")
    built(catalog, job, last)
    catalog.finish_run(last.id)
    assert catalog.job(job.id).status is JobStatus.FINISHED


# --- delete and expire --------------------------------------------------------------------------------------------


def test_a_deleted_job_leaves_its_images_and_its_snapshots_to_retention(catalog: Catalog, source: Source) -> None:
    job, image_id = waiting(catalog, source, tags={"team": "web"})
    run = started(catalog, job, "flow-2")
    catalog.record_snapshot(run.id, "n-one", Figures())
    with pytest.raises(JobInvalidStatus, match="Running"):
        catalog.begin_removal(job.id)
    catalog.fail_run(run.id, StoreNoSpace(path="/s"))
    assert catalog.finish_removal(job.id) == [], "nobody has asked for it"
    assert catalog.begin_removal(job.id).status is JobStatus.IN_ERROR
    assert catalog.job(job.id).status is JobStatus.DELETING
    assert catalog.ended_with_leftovers() == [job.id]
    assert catalog.begin_removal(job.id).status is JobStatus.DELETING, "a second delete goes on with the first"
    assert len(catalog.finish_removal(job.id)) == 2
    with pytest.raises(JobNotFound):
        catalog.job(job.id)
    assert catalog.finish_removal(job.id) == []
    image = catalog.image(image_id)
    assert (image.job_id, image.source_id) == (job.id, source.id)
    assert catalog.unneeded_snapshots() == ["n-one"]
    assert make_job(catalog, source).source_id == source.id, "the source is free again"


def test_the_time_of_a_job_that_runs_is_not_over_before_its_run(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source, incremental={"interval_hours": 1})
    catalog.scheduled(job.id)
    late = job.valid_until + timedelta(seconds=1)
    assert catalog.expire_jobs(job.valid_until - timedelta(seconds=1)) == []
    run = started(catalog, job)
    assert catalog.expire_jobs(late) == []
    catalog.fail_run(run.id, StoreNoSpace(path="/s"))
    before = version(catalog, job)
    assert catalog.expire_jobs(late) == [job.id]
    after = catalog.job(job.id)
    assert after.status is JobStatus.EXPIRED
    assert version(catalog, job) > before
    assert (late + DELETED_AFTER).strftime("%Y-%m-%d") in after.status_info
    assert catalog.expire_jobs(late) == []
    assert catalog.ended_with_leftovers() == [job.id]
    catalog.unscheduled(job.id)
    assert catalog.ended_with_leftovers() == []
    assert catalog.expired_long_ago(late + DELETED_AFTER - timedelta(seconds=1)) == []
    assert catalog.expired_long_ago(late + DELETED_AFTER) == [job.id]


def test_jobs_expire_in_the_states_of_the_table_alone(catalog: Catalog, source: Source) -> None:
    job = make_job(catalog, source)
    for status in JobStatus:
        put_into(catalog, job, status)
        gone = catalog.expire_jobs(now() + timedelta(days=400))
        assert bool(gone) == (status in ("Ready", "Stopped", "InError", "Waiting")), status


def test_a_job_that_waits_for_its_turn_is_queued_and_a_delete_takes_it_out(catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    run = catalog.begin_run(job.id, kind="manual")
    assert not catalog.job(job.id).queued
    with catalog._database.write() as session:
        row = session.get(JobRow, job.id)
        assert row is not None
        row.status, row.business_status = JobStatus.WAITING, None
    queued = catalog.job(job.id)
    assert queued.queued and queued.business_status is None
    assert queued.next_step.startswith("Nothing;")
    assert catalog.expire_jobs(job.valid_until + timedelta(days=1)) == []
    with pytest.raises(JobInvalidStatus, match="queued"):
        catalog.cut_over(job.id)
    catalog.begin_removal(job.id)
    assert catalog.run(run.id).status is RunStatus.STOPPED

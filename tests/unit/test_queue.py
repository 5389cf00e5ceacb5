"""Turns: how many jobs run at once, who waits, and what becomes of those who do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from rehost.catalog.admission import start_waiting
from rehost.catalog.catalog import Catalog
from rehost.catalog.job import JobSpec
from rehost.catalog.queue import Place, Wait, waits
from rehost.catalog.records import Job, Run
from rehost.catalog.states import JobStatus, RunStatus
from rehost.catalog.tables import JobRow
from rehost.errors import JobInvalidStatus, OrchestrationAway, StoreNoSpace
from rehost.settings import Region, Settings, Vpc
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory


def place(name: str, region: str = "local", *, batched: bool = False, in_vswitch: bool = False) -> Place:
    return Place(f"r-{name}", f"j-{name}", region, batched, in_vswitch)


def limits(region: str) -> int:
    return {"local": 2, "wide": 500}[region]


def test_the_oldest_run_has_the_first_turn_and_a_full_region_holds_up_no_other() -> None:
    waiting = [place("1"), place("2"), place("3", "wide"), place("4")]
    found = waits(waiting, [place("0")], limits)
    assert found == {"r-1": None, "r-2": Wait(1, 2, False), "r-3": None, "r-4": Wait(2, 2, False)}
    assert str(found["r-4"]) == "number 2 in the queue; 2 jobs of the region run at once"


def test_of_jobs_started_together_ten_run_at_once_and_a_hundred_with_a_vswitch() -> None:
    waiting = [place(f"{n}", "wide", batched=True) for n in range(12)]
    waiting += [place(f"v{n}", "wide", batched=True, in_vswitch=True) for n in range(101)]
    waiting += [place("alone", "wide")]
    found = waits(waiting, [], limits)
    assert [id for id, wait in found.items() if wait is not None] == ["r-10", "r-11", "r-v100"]
    assert found["r-10"] == Wait(1, 10, True)
    assert found["r-v100"] == Wait(3, 100, True)


@pytest.fixture
def narrow(tmp_path: Path, database_url: str) -> Iterator[Catalog]:
    """The catalog of a region that runs two jobs at once."""
    regions = {"local": Region(max_running_jobs=2, networks={"vpc-1": Vpc(vswitches={"vsw-1": "lab"})})}
    settings = Settings(home=tmp_path, database_url=database_url, regions=regions)
    with Catalog.open(settings) as narrow:
        yield narrow


def make_job(narrow: Catalog, name: str, **fields: Any) -> Job:
    inventory = Inventory(hostname=name, os_id="debian", architecture="x86_64")
    source = narrow.add_source(PathConnection(root=f"/srv/{name}"), inventory)
    spec = {"source_id": source.id, "region_id": "local", "name": name, **fields}
    return narrow.create_job(JobSpec.model_validate(spec))


def begun(narrow: Catalog, *names: str) -> list[Run]:
    return [narrow.begin_run(make_job(narrow, name).id, kind="manual") for name in names]


def statuses(narrow: Catalog, runs: list[Run]) -> list[str]:
    return [narrow.job(run.job_id).status for run in runs]


def test_a_start_that_finds_no_place_leaves_the_job_as_it_is_and_waits(narrow: Catalog) -> None:
    runs = begun(narrow, "aa", "bb", "cc", "dd")
    assert statuses(narrow, runs) == ["Running", "Running", "Ready", "Ready"]
    assert [run.status for run in runs] == [RunStatus.PENDING] * 4
    with pytest.raises(JobInvalidStatus, match="queued"):
        narrow.begin_run(runs[2].job_id, kind="manual")
    assert narrow.admit_run() is None


def test_the_end_of_a_run_lets_the_one_begin_that_waits_longest(narrow: Catalog) -> None:
    first, _, third, fourth = begun(narrow, "aa", "bb", "cc", "dd")
    narrow.fail_run(first.id, StoreNoSpace(path="/", free_bytes=0, needed_bytes=1))
    later = narrow.begin_run(make_job(narrow, "ee").id, kind="manual")
    assert narrow.job(later.job_id).status == "Ready", "it overtook those who waited before it"
    asked: list[str] = []

    def ask(run: Run, job: Job) -> str:
        assert job.status is JobStatus.RUNNING
        asked.append(run.id)
        return f"flow-{run.id}"

    assert [run.id for run in start_waiting(narrow, ask)] == asked == [third.id]
    assert narrow.run(third.id).flow_run_id == f"flow-{third.id}"
    assert statuses(narrow, [third, fourth, later]) == ["Running", "Ready", "Ready"]


def test_a_run_that_prefect_does_not_take_waits_again_with_its_job_as_it_was(narrow: Catalog) -> None:
    first, _, third = begun(narrow, "aa", "bb", "cc")
    narrow.claim_run(first.job_id, flow_run_id="flow-1")
    narrow.stop_run(first.id)
    before = narrow.job(third.job_id)

    def away(run: Run, job: Job) -> str:
        raise OrchestrationAway(url="http://prefect", reason="refused")

    with pytest.raises(OrchestrationAway):
        start_waiting(narrow, away)
    after = narrow.job(third.job_id)
    assert (after.status, after.started_at, after.progress) == (before.status, before.started_at, before.progress)
    admitted = narrow.admit_run()
    assert admitted is not None and admitted.id == third.id


def test_a_run_that_a_flow_has_claimed_does_not_wait_again(narrow: Catalog) -> None:
    (run,) = begun(narrow, "aa")
    narrow.claim_run(run.job_id, flow_run_id="flow-1")
    assert not narrow.requeue_run(run.id)
    assert narrow.job(run.job_id).status == "Running"


def test_a_schedule_that_finds_no_place_leaves_a_run_that_waits_for_one(narrow: Catalog) -> None:
    first, _ = begun(narrow, "aa", "bb")
    job = make_job(narrow, "cc", incremental={"interval_hours": 1})
    waiting = narrow.claim_run(job.id, flow_run_id="flow-of-the-schedule", kind="schedule")
    assert (waiting.status, waiting.flow_run_id) == (RunStatus.PENDING, None)
    assert narrow.job(job.id).status == "Ready"
    again = narrow.claim_run(job.id, flow_run_id="flow-of-the-next-schedule", kind="schedule")
    assert (again.id, again.status) == (waiting.id, RunStatus.PENDING)
    narrow.stop_run(first.id)
    claimed = narrow.claim_run(job.id, flow_run_id="flow-of-the-next-schedule", kind="schedule")
    assert (claimed.id, claimed.status) == (waiting.id, RunStatus.RUNNING)
    assert narrow.job(job.id).status == "Running"


@pytest.mark.parametrize(("before", "after"), [("Ready", "Ready"), ("InError", "InError"), ("Waiting", "Stopped")])
def test_stop_takes_a_queued_job_out_of_the_queue(narrow: Catalog, before: str, after: str) -> None:
    begun(narrow, "aa", "bb")
    job = make_job(narrow, "cc")
    put_into(narrow, job.id, before)
    narrow.begin_run(job.id, kind="manual")
    assert narrow.request_stop(job.id) is None
    assert narrow.job(job.id).status == after
    assert narrow.runs(job.id).total == 0


def test_a_job_that_may_run_no_more_leaves_the_queue_and_holds_up_nobody(narrow: Catalog) -> None:
    first, _, third, fourth = begun(narrow, "aa", "bb", "cc", "dd")
    put_into(narrow, third.job_id, "Deleting")
    narrow.stop_run(first.id)
    admitted = narrow.admit_run()
    assert admitted is not None and admitted.id == fourth.id
    assert narrow.run(third.id).status is RunStatus.STOPPED


def test_a_job_with_a_vswitch_goes_to_the_work_queue_of_its_workers(narrow: Catalog) -> None:
    private = make_job(narrow, "aa", network={"mode": "private", "vswitch_id": "vsw-1"})
    assert narrow.work_queue(private) == "lab"
    assert narrow.work_queue(make_job(narrow, "bb")) == "default"


def test_many_who_give_places_at_once_give_no_more_than_there_are(narrow: Catalog) -> None:
    runs = begun(narrow, *(f"web{n}" for n in range(10)))
    for run in runs[:2]:
        narrow.stop_run(run.id)
    barrier = threading.Barrier(6)
    admitted: list[Run | None] = []

    def admit() -> None:
        barrier.wait(10)
        admitted.append(narrow.admit_run())

    threads = [threading.Thread(target=admit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(admitted) == 6
    assert {run.id for run in admitted if run} == {run.id for run in runs[2:4]}
    assert statuses(narrow, runs).count("Running") == 2


def test_many_starts_at_once_take_no_more_places_than_there_are(narrow: Catalog) -> None:
    jobs = [make_job(narrow, f"web{n}").id for n in range(6)]
    barrier = threading.Barrier(len(jobs))

    def start(id: str) -> None:
        barrier.wait(10)
        narrow.begin_run(id, kind="manual")

    threads = [threading.Thread(target=start, args=(id,)) for id in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(narrow.job(id).status for id in jobs) == ["Ready"] * 4 + ["Running"] * 2


def put_into(narrow: Catalog, job_id: str, status: str) -> None:
    with narrow._database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(status=status))


def test_a_run_that_waits_again_is_no_flow_runs(narrow: Catalog) -> None:
    (run,) = begun(narrow, "aa")
    assert narrow.requeue_run(run.id)
    narrow.attach_flow_run(run.id, "flow-late")  # Prefect answered after that
    assert narrow.run(run.id).flow_run_id is None, "or housekeeping takes its end for the run's"


def test_a_run_that_was_taken_back_while_prefect_was_asked_holds_up_no_other(narrow: Catalog) -> None:
    runs = begun(narrow, "aa", "bb", "cc", "dd")
    for run in runs[:2]:
        narrow.claim_run(run.job_id, flow_run_id=f"flow-{run.id}")
        narrow.stop_run(run.id)

    def ask(run: Run, job: Job) -> str:
        if run.id == runs[2].id:
            narrow.withdraw_run(run.id)
        return f"flow-{run.id}"

    start_waiting(narrow, ask)
    assert statuses(narrow, runs[2:]) == ["Ready", "Running"]

"""Housekeeping: which runs it ends and which not, and that no part of it keeps the others from being done."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.exceptions import TerminationSignal

from flows import afterwards, housekeeping, orchestration, passing
from flows.each import each
from flows.order import Order
from rehost.catalog.catalog import Catalog
from rehost.catalog.database import now
from rehost.catalog.records import Run, Source
from rehost.catalog.states import BusinessStatus, JobStatus
from rehost.errors import CatalogAway, JobInvalidStatus, OrchestrationAway, RunNotFound
from rehost.settings import settings
from tasks.run_pass import open_pass, reap_workspaces, sign
from tests.support.running import wait_for
from tests.unit.test_catalog_endings import waiting
from tests.unit.test_catalog_runs import make_job, source as source, started
from tests.unit.test_retire import Prefect, catalog as catalog, prefect as prefect


@pytest.fixture
def process() -> Iterator[int]:
    """A process that waits for a signal."""
    number = os.fork()
    if number == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
        os._exit(0)
    yield number
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)


def owned(run: Run, process: int) -> None:
    sign(run.id, process)


def ended(process: int) -> bool:
    found = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    return found is not None


def test_a_run_whose_process_lives_is_not_ended_because_prefect_took_it_for_dead(
    catalog: Catalog, source: Source, prefect: Prefect, process: int
) -> None:
    run = started(catalog, job := make_job(catalog, source))
    owned(run, process)
    prefect.state, prefect.since = "CRASHED", now() - timedelta(hours=1)
    assert housekeeping.put_right() == 0
    assert catalog.job(job.id).status is JobStatus.RUNNING and not ended(process)
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    assert housekeeping.put_right() == 1
    assert catalog.job(job.id).status is JobStatus.IN_ERROR


@pytest.mark.parametrize(
    ("state", "seconds", "told"), [("GONE", 0, True), ("CANCELLED", 60, False), ("CANCELLED", 130, True)]
)
def test_a_process_whose_flow_run_people_ended_in_prefect_is_ended_before_its_run(
    catalog: Catalog, source: Source, prefect: Prefect, process: int, state: str, seconds: int, told: bool
) -> None:
    run = started(catalog, job := make_job(catalog, source))
    owned(run, process)
    prefect.state, prefect.since = state, now() - timedelta(seconds=seconds)
    assert housekeeping.put_right() == 0
    assert catalog.job(job.id).status is JobStatus.RUNNING
    if not told:
        assert not ended(process)
        return
    wait_for("end of the process, which was told to", lambda: ended(process), seconds=20)
    assert housekeeping.put_right() == 1
    assert catalog.job(job.id).status is not JobStatus.RUNNING


def test_a_run_whose_flow_run_never_begins_waits_for_its_turn_once_more(
    catalog: Catalog, source: Source, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = catalog.begin_run(make_job(catalog, source).id, kind="manual")
    catalog.attach_flow_run(run.id, "flow-1")
    prefect.state, prefect.since = "PENDING", now() - timedelta(seconds=130)
    assert housekeeping.put_right() == 0
    assert ("end", "flow-1") in prefect.asked
    job = catalog.job(run.job_id)
    assert (job.status, job.queued) == (JobStatus.READY, True)
    again = catalog.admit_run()
    assert again is not None and (again.id, again.flow_run_id) == (run.id, None)
    catalog.attach_flow_run(run.id, "flow-2")
    with pytest.raises(JobInvalidStatus):
        catalog.claim_run(run.job_id, flow_run_id="flow-1")

    monkeypatch.setattr(housekeeping, "_TRIED", timedelta(0))
    assert housekeeping.put_right() == 1
    assert catalog.job(run.job_id).status is JobStatus.IN_ERROR


@pytest.mark.parametrize(("state", "after"), [("RUNNING", JobStatus.IN_ERROR), ("CANCELLING", JobStatus.STOPPED)])
def test_a_run_whose_process_died_before_it_took_it_is_ended(
    catalog: Catalog, source: Source, prefect: Prefect, state: str, after: JobStatus
) -> None:
    run = catalog.begin_run(make_job(catalog, source).id, kind="manual")
    catalog.attach_flow_run(run.id, "flow-1")
    prefect.state, prefect.since = state, now() - timedelta(seconds=90)
    assert housekeeping.put_right() == 0  # its process may be waiting for the catalog
    prefect.since = now() - timedelta(seconds=130)
    assert housekeeping.put_right() == 1
    assert ("end", "flow-1") in prefect.asked
    assert catalog.job(run.job_id).status is after


@pytest.mark.parametrize(("with_the_services", "code"), [(False, "Run.Crashed"), (True, "Run.Interrupted")])
def test_a_run_whose_process_died_after_its_workspace_had_gone_is_ended(
    catalog: Catalog, source: Source, prefect: Prefect, process: int, with_the_services: bool, code: str
) -> None:
    run = started(catalog, make_job(catalog, source))
    with open_pass(run):
        sign(run.id, process)
    reap_workspaces()
    assert housekeeping.put_right() == 0
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    if with_the_services:
        afterwards.ending_marker().touch()
    assert housekeeping.put_right() == 1
    job = catalog.job(run.job_id)
    assert (job.status, job.error and job.error.code) == (JobStatus.IN_ERROR, code)
    assert list((settings().scratch_path / "owners").iterdir()) == []


def test_a_timed_start_that_a_worker_took_and_never_began_is_told_of(
    catalog: Catalog, source: Source, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def paused() -> dict[str, bool]:
        return {}

    monkeypatch.setattr(orchestration, "paused_schedules", paused)
    start_at = now() + timedelta(hours=1)
    job = make_job(catalog, source, execution={"mode": "at", "start_at": start_at})
    catalog.timed(job.id, "flow-timed")
    prefect.state, prefect.since = "PENDING", now() - timedelta(seconds=90)
    housekeeping.put_right()
    assert catalog.job(job.id).next_run_at == start_at
    prefect.since = now() - timedelta(seconds=130)
    housekeeping.put_right()
    assert ("end", "flow-timed") in prefect.asked
    assert catalog.job(job.id).next_step == "Start the job."


def test_a_run_that_goes_while_it_is_judged_keeps_no_other_from_being_judged(
    catalog: Catalog, source: Source, prefect: Prefect, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(catalog, make_job(catalog, source))
    prefect.state = "CRASHED"
    deleted = run.model_copy(update={"id": "r-00000000000000000000"})
    monkeypatch.setattr(Catalog, "runs_under_way", lambda _self: [deleted, run])
    assert housekeeping.put_right() == 1
    assert catalog.run(run.id).status == "failed"


def test_every_part_is_done_whatever_became_of_the_others() -> None:
    done: list[str] = []

    def failing(error: Exception) -> int:
        done.append(type(error).__name__)
        raise error

    away = OrchestrationAway(url="http://prefect", reason="refused")
    assert each(lambda: 1, lambda: failing(away), lambda: 2) == [1, 0, 2]
    with pytest.raises(RuntimeError, match="the first"):
        each(lambda: failing(RuntimeError("the first")), lambda: failing(KeyError("x")), lambda: done.append("last"))
    assert done == ["OrchestrationAway", "RuntimeError", "KeyError", "last"]
    with pytest.raises(CatalogAway):
        each(lambda: failing(CatalogAway(reason="refused")), lambda: done.append("never"))
    assert done[-1] == "CatalogAway"


def test_dead_runs_are_found_while_the_store_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def note(name: str) -> int:
        done.append(name)
        return 0

    for name in ("put_right", "retire_what_is_over", "_forget_deleted_sources", "tidy_images", "tidy_store"):
        monkeypatch.setattr(housekeeping, name, functools.partial(note, name))
    housekeeping.housekeeping.fn()
    assert done == ["put_right", "retire_what_is_over", "_forget_deleted_sources"]
    housekeeping.tidy.fn()
    assert done[3:] == ["tidy_images", "tidy_store"]
    deployments = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text(encoding="utf-8"))[
        "deployments"
    ]
    every = {one["entrypoint"]: one["schedules"] for one in deployments if one["schedules"]}
    assert every == {
        "flows/housekeeping.py:housekeeping": [{"interval": 60}],
        "flows/housekeeping.py:tidy": [{"interval": 600}],
    }


def test_what_follows_a_run_never_changes_how_it_ended(
    catalog: Catalog, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_opened: Catalog) -> list[Run]:
        raise RunNotFound(id="r-1")

    monkeypatch.setattr(afterwards, "start_waiting", fail)
    afterwards.run_ended("j-none")


def test_the_end_of_a_deleted_jobs_run_lets_others_begin(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Catalog] = []
    monkeypatch.setattr(afterwards, "start_waiting", asked.append)
    afterwards.run_ended("j-none")
    assert len(asked) == 1


def test_a_schedule_that_was_taken_away_while_it_was_counted_anew_stays_away(
    catalog: Catalog, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, _ = waiting(catalog, source)
    catalog.scheduled(job.id, now() - timedelta(hours=1))

    async def count_from(job_id: str, **_named: object) -> bool:
        catalog.request_stop(job_id)
        catalog.unscheduled(job_id)
        return True

    monkeypatch.setattr(orchestration, "count_from", count_from)
    afterwards.count_from_the_last_run(catalog, job.id)
    assert not catalog.is_scheduled(job.id), "the next start registers it"


def test_a_schedule_that_was_made_since_prefect_was_asked_is_not_forgotten(catalog: Catalog, source: Source) -> None:
    job, _ = waiting(catalog, source)
    catalog.scheduled(job.id, before := now() - timedelta(hours=1))
    catalog.scheduled(job.id, now())
    assert not catalog.schedule_lost(job.id, before) and catalog.is_scheduled(job.id)
    catalog.scheduled(job.id, before)
    assert catalog.schedule_lost(job.id, before) and not catalog.is_scheduled(job.id)


@pytest.mark.parametrize(
    ("ending", "asked", "status", "code"),
    [
        (True, False, JobStatus.IN_ERROR, "Run.Interrupted"),
        (True, True, JobStatus.STOPPED, None),
        (False, False, JobStatus.STOPPED, None),
    ],
)
def test_a_run_that_ends_with_the_services_was_not_stopped_by_anybody(
    ending: bool,
    asked: bool,
    status: JobStatus,
    code: str | None,
    catalog: Catalog,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = make_job(catalog, source)
    run = started(catalog, job)
    catalog.set_stage(job.id, BusinessStatus.SYNCING)
    if asked:
        catalog.request_stop(job.id)
    if ending:
        afterwards.ending_marker().touch()

    def terminated(_run: Run) -> AbstractContextManager[Any]:
        raise TerminationSignal(signal.SIGTERM)

    monkeypatch.setattr(passing, "open_pass", terminated)
    monkeypatch.setattr(passing, "get_run_logger", lambda: logging.getLogger("test"))
    order = Order(job_id=job.id, job_name="web", source_name="web1")
    with pytest.raises(TerminationSignal):
        passing._do(order, run)
    ended = catalog.job(job.id)
    assert (ended.status, ended.error.code if ended.error else None) == (status, code)

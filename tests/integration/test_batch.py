"""Many jobs on real services: turns, work queues, and what people do with schedules in the Prefect UI."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from demo.client import Client, rehost_services
from demo.registry import free_port
from rehost.catalog.catalog import Catalog
from rehost.cli.up import POOL, checkout
from rehost.run import spawn
from rehost.settings import Settings
from tests.support.running import Prefect, forget_images, make_job, make_tree, wait_for

pytestmark = pytest.mark.engine

_JOBS = int(os.environ.get("REHOST_TEST_BATCH", "8"))  # 100: ten at once
_LIMIT = 10 if _JOBS > 50 else 3
_SECONDS_FOR_ONE = 60.0
_CONFIG = f"""
[regions.local]
max_running_jobs = {_LIMIT}

[regions.local.networks.vpc-1.vswitches]
vsw-1 = "lab"
"""


@dataclass(frozen=True)
class Running:
    """Services that run."""

    client: Client
    prefect: Prefect
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return Path(self.environment["REHOST_HOME"])

    def job(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/v1/jobs/{id}")
        return found

    def finished(self, id: str) -> dict[str, Any] | None:
        job = self.job(id)
        assert job["status"] in ("Ready", "Running", "Finished", "Waiting"), job["error"]
        return job if job["status"] in ("Finished", "Waiting") else None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("home")
    (home / "rehost.toml").write_text(_CONFIG)
    port = free_port()
    environment = {
        "REHOST_HOME": str(home),
        "REHOST_CONFIG": str(home / "rehost.toml"),
        "REHOST_API_PORT": str(free_port()),
        "REHOST_PREFECT_PORT": str(port),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with rehost_services(environment) as client:
            yield Running(client, Prefect(port), environment)
    forget_images()


@pytest.mark.timeout(int(300 + _JOBS * _SECONDS_FOR_ONE))
def test_of_many_jobs_started_together_no_more_run_than_may_and_all_finish(running: Running, tmp_path: Path) -> None:
    jobs = [make_job(running.client, make_tree(tmp_path / f"web{n}"), f"batch-{n}")["id"] for n in range(_JOBS)]
    began = time.monotonic()
    for first in range(0, _JOBS, 50):
        items = running.client.post("/v1/jobs/start", {"job_ids": jobs[first : first + 50]})["items"]
        assert all(item["ok"] for item in items), items
    last = running.job(jobs[-1])
    assert (last["status"], last["queued"]) == ("Ready", True)
    assert "in the queue" in last["status_info"]

    def look() -> bool:
        at_once = running.client.get("/v1/jobs?status=Running&limit=1")["total"]
        assert at_once <= _LIMIT
        stopped = sum(running.client.get(f"/v1/jobs?status={s}&limit=1")["total"] for s in ("InError", "Stopped"))
        assert not stopped
        return bool(running.client.get("/v1/jobs?status=Finished&limit=1")["total"] == _JOBS)

    wait_for("end of all jobs", look, 120 + _JOBS * _SECONDS_FOR_ONE)
    print(f"{_JOBS} jobs, {_LIMIT} at once: {time.monotonic() - began:.0f} s")
    with Catalog.open(Settings(home=running.home)) as catalog:
        runs = [run for id in jobs for run in catalog.runs(id).items]
    assert len(runs) == _JOBS, "a job ran twice, or not at all"
    assert most_at_once([(run.started_at, run.ended_at) for run in runs]) <= _LIMIT
    for run in runs:
        wait_for("agreement", functools.partial(running.prefect.has_ended, run.flow_run_id or "", ("COMPLETED",)), 180)


def most_at_once(spans: list[tuple[datetime | None, datetime | None]]) -> int:
    """How many of the spans covered one moment, at most."""
    edges = [(edge, step) for span in spans for edge, step in zip(span, (1, -1), strict=True) if edge is not None]
    now = most = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most


def test_a_job_with_a_vswitch_waits_for_a_worker_that_sits_there(running: Running, tmp_path: Path) -> None:
    private = make_job(
        running.client,
        make_tree(tmp_path / "private"),
        "private",
        network={"mode": "private", "vpc_id": "vpc-1", "vswitch_id": "vsw-1"},
    )["id"]
    public = make_job(running.client, make_tree(tmp_path / "public"), "public")["id"]
    running.client.post("/v1/jobs/start", {"job_ids": [private, public]})
    wait_for("end of the job without a vSwitch", lambda: running.finished(public))
    flow_run = running.client.newest_run(private)["flow_run_id"]
    assert running.prefect.get(f"/flow_runs/{flow_run}")["work_queue_name"] == "lab"
    assert running.prefect.state(flow_run) == "SCHEDULED"
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--work-queue", "lab"]
    environment = {
        **running.environment,
        "PREFECT_API_URL": running.prefect.url,
        "PREFECT_HOME": str(running.home / "prefect"),
    }
    with (
        (tmp_path / "worker.log").open("wb") as log,
        spawn(argv, stdout=log, stderr=log, env=environment, cwd=checkout()),
    ):
        wait_for("end of the job with a vSwitch", lambda: running.finished(private))


def test_an_interval_counts_from_the_end_of_a_run_and_prefect_is_where_it_is_paused_and_deleted(
    running: Running, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "again")
    id = make_job(running.client, tree, "again", incremental={"interval_hours": 2})["id"]
    running.client.post(f"/v1/jobs/{id}/start", {})
    job = wait_for("end of the run", lambda: running.finished(id))

    def counted() -> bool:
        schedule = running.prefect.schedule(id)
        assert schedule is not None
        planned = running.prefect.planned(schedule)
        return bool(planned) and planned[0] == time_of(running.job(id)["next_run_at"])

    wait_for("schedule that counts from the end", counted)
    assert time_of(running.job(id)["next_run_at"]) == time_of(job["ended_at"]) + timedelta(hours=2)

    schedule = running.prefect.schedule(id)
    assert schedule is not None
    running.prefect.pause(schedule, active=False)
    running.prefect.keep_house()
    wait_for("paused job", lambda: "paused" in running.job(id)["status_info"])
    assert running.job(id)["next_run_at"] is None
    running.prefect.pause(schedule, active=True)
    running.prefect.keep_house()
    wait_for("job with a schedule", lambda: running.job(id)["next_run_at"])
    running.prefect.delete(schedule)
    running.prefect.keep_house()
    wait_for("job without a schedule", lambda: "no schedule" in running.job(id)["status_info"])


def test_what_is_cancelled_in_prefect_before_it_began_is_understood(running: Running, tmp_path: Path) -> None:
    at = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    timed = make_job(running.client, make_tree(tmp_path / "timed"), "timed", execution={"mode": "at", "start_at": at})
    assert timed["next_run_at"] is not None
    running.prefect.cancel(timed["prefect_url"].rpartition("/")[2])
    # Nobody works on this one: no worker of its queue is there.
    network = {"mode": "private", "vswitch_id": "vsw-1"}
    waiting = make_job(running.client, make_tree(tmp_path / "waiting"), "waiting", network=network)["id"]
    running.client.post(f"/v1/jobs/{waiting}/start", {})
    running.prefect.cancel(running.client.newest_run(waiting)["flow_run_id"])
    running.prefect.keep_house()
    wait_for("stopped job", lambda: running.job(waiting)["status"] == "Stopped")
    wait_for("job without its start", lambda: "taken away" in running.job(timed["id"])["status_info"])
    found = running.job(timed["id"])
    assert (found["status"], found["next_run_at"], found["next_step"]) == ("Ready", None, "Start the job.")


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text)

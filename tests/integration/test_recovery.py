"""What is under way survives its services: Prefect's server, the worker and the catalog's database go away meanwhile.

One set of services on a PostgreSQL of the test's own; each test hurts one part of it in the middle of a transfer.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from demo.client import Client, rehost_services
from demo.registry import free_port
from tests.support.postgres import PostgreSQL, installed, postgresql
from tests.support.running import Prefect, forget_images, make_job, make_tree, services_of, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.skipif(not installed(), reason="needs PostgreSQL's server")]

_MIB = 32
_SLOW_KBPS = 4000
_STARTED_AGAIN = {"Stopped", "InError"}


@dataclass(frozen=True)
class Running:
    """Services that run, and the database of their catalog."""

    client: Client
    prefect: Prefect
    home: Path
    database: PostgreSQL

    def process(self, words: bytes) -> int:
        """The service with these words in its command."""
        found = services_of(self.home, words)
        assert found, words
        return min(found)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home, port = tmp_path_factory.mktemp("home"), free_port()
    with pytest.MonkeyPatch.context() as patch, postgresql() as server, server.database() as name:
        patch.delenv("PREFECT_API_URL", raising=False)
        environment = {
            "REHOST_HOME": str(home),
            "REHOST_DATABASE_URL": server.url(name),
            "REHOST_API_PORT": str(free_port()),
            "REHOST_PREFECT_PORT": str(port),
        }
        with rehost_services(environment) as client:
            yield Running(client, Prefect(port), home, server)
    forget_images()


@pytest.fixture
def job(running: Running, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A job whose transfer is under way."""
    tree = make_tree(tmp_path / "tree", _MIB)
    name = f"hurt-{abs(hash(request.node.name)) % 10**9}"
    job = make_job(running.client, tree, name, replication={"bandwidth_limit_kbps": _SLOW_KBPS})
    running.client.post(f"/v1/jobs/{job['id']}/start", {})

    def arriving() -> bool:
        found = running.client.get(f"/v1/jobs/{job['id']}")
        assert found["status"] in ("Ready", "Running"), found["error"]
        return bool(found["business_status"] == "Syncing" and found["progress"] >= 15)

    wait_for("progress", arriving)
    return job


def come_to_rest(running: Running, id: str) -> dict[str, Any]:
    """The job when it runs no more; the API and the catalog may be away at first."""

    def look() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = running.client.get(f"/v1/jobs/{id}")
        except RuntimeError as error:
            assert "Unavailable" in str(error)
            return None
        return None if found["status"] == "Running" else found

    found: dict[str, Any] = wait_for("end of the run", look)
    return found


def agree(running: Running, id: str) -> None:
    """What the catalog and Prefect have of each run of the job is the same."""
    wanted = {"succeeded": {"COMPLETED"}, "failed": {"FAILED", "CRASHED"}, "stopped": {"CANCELLED"}}
    for run in running.client.get(f"/v1/jobs/{id}/runs")["items"]:
        states = wanted[run["status"]]
        wait_for(f"state {states}", functools.partial(running.prefect.has_ended, run["flow_run_id"], states))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_outlives_the_prefect_server(running: Running, job: dict[str, Any], number: signal.Signals) -> None:
    server = running.process(b"server\0start")
    os.kill(server, number)
    ended = come_to_rest(running, job["id"])
    assert ended["status"] == "Finished", ended["error"]
    wait_for("Prefect's server", lambda: services_of(running.home, b"server\0start"))
    agree(running, job["id"])
    assert running.client.get(f"/v1/jobs/{job['id']}/runs")["total"] == 1


def test_a_worker_that_is_killed_is_started_again_and_the_run_goes_on_after_a_start(
    running: Running, job: dict[str, Any]
) -> None:
    worker = running.process(b"worker\0start")
    os.kill(worker, signal.SIGKILL)
    ended = come_to_rest(running, job["id"])
    assert (ended["status"], ended["error"]["code"]) == ("InError", "Run.Crashed")
    running.client.post(f"/v1/jobs/{job['id']}/start", {})
    assert come_to_rest(running, job["id"])["status"] == "Finished"
    runs = running.client.get(f"/v1/jobs/{job['id']}/runs")["items"]
    assert [run["status"] for run in runs] == ["succeeded", "failed"]
    assert runs[0]["bytes_new"] < (_MIB - 2) << 20, "what had arrived was sent again"
    agree(running, job["id"])


def test_a_run_outlives_its_catalog(running: Running, job: dict[str, Any]) -> None:
    running.database.stop()
    back = threading.Timer(20.0, running.database.start)
    back.start()
    try:
        ended = come_to_rest(running, job["id"])
    finally:
        back.join()
    if ended["status"] in _STARTED_AGAIN:
        running.client.post(f"/v1/jobs/{job['id']}/start", {})
        ended = come_to_rest(running, job["id"])
    assert ended["status"] == "Finished", ended["error"]
    agree(running, job["id"])

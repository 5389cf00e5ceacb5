"""Jobs on services that run, and what the Prefect UI does behind its buttons."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from demo.client import Client

WAIT_SECONDS = 240.0
_BUSY_TRIES = 20
_MIB = 1 << 20


class Prefect:
    """The Prefect server of the services, asked as its UI asks it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api"
        self._http = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._http.request(method, path, json=body)
        for _ in range(_BUSY_TRIES):
            if answer.status_code != 503:  # its SQLite was locked; the UI's client asks again too
                break
            time.sleep(1)
            answer = self._http.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def get(self, path: str) -> Any:
        return self._ask("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._ask("POST", path, body)

    def state(self, flow_run_id: str) -> str:
        return str(self.get(f"/flow_runs/{flow_run_id}")["state_type"])

    def has_ended(self, flow_run_id: str, states: Collection[str]) -> bool:
        return self.state(flow_run_id) in states

    def cancel(self, flow_run_id: str) -> None:
        """The Cancel button of a flow run."""
        state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        self.post(f"/flow_runs/{flow_run_id}/set_state", state)

    def schedule(self, job_id: str) -> dict[str, Any] | None:
        """The schedule of a job on the sync deployment."""
        schedules = self.get("/deployments/name/sync/sync")["schedules"]
        found: dict[str, Any] | None = next((s for s in schedules if s["slug"] == job_id), None)
        return found

    def pause(self, schedule: dict[str, Any], *, active: bool) -> None:
        """The switch of a schedule."""
        path = f"/deployments/{schedule['deployment_id']}/schedules/{schedule['id']}"
        self._ask("PATCH", path, {"active": active})

    def delete(self, schedule: dict[str, Any]) -> None:
        path = f"/deployments/{schedule['deployment_id']}/schedules/{schedule['id']}"
        self._ask("DELETE", path)

    def planned(self, schedule: dict[str, Any]) -> list[datetime]:
        """When the runs of a schedule are planned, the next one first."""
        body = {"deployments": {"id": {"any_": [schedule["deployment_id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        runs = self.post("/flow_runs/filter", {**body, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}})
        mine = [run for run in runs if (run["created_by"] or {}).get("id") == schedule["id"]]
        return [datetime.fromisoformat(run["expected_start_time"]).astimezone(UTC) for run in mine]

    def keep_house(self) -> None:
        """Have housekeeping done now."""
        deployment = self.get("/deployments/name/housekeeping/housekeeping")
        self.post(f"/deployments/{deployment['id']}/create_flow_run", {"state": {"type": "SCHEDULED"}})


def make_tree(root: Path, mib: int = 0) -> Path:
    """A server's tree of a few files, and so much that does not compress."""
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    (root / "bin").mkdir()
    (root / "lib" / "systemd").mkdir(parents=True)
    for program in ("bin/sh", "lib/systemd/systemd"):  # a program tells the architecture, systemd what is to be started
        shutil.copy("/bin/true", root / program)
    for number in range(0, mib, 4):
        (root / f"data-{number:03}").write_bytes(os.urandom(4 * _MIB))
    return root


def make_job(client: Client, tree: Path, name: str, **fields: Any) -> dict[str, Any]:
    """A job that makes a container image of the tree, and waits for a start."""
    source = client.post("/v1/sources", {"name": name, "connection": {"kind": "path", "root": str(tree)}})
    body: dict[str, Any] = {
        "source_id": source["id"],
        "region_id": "local",
        "name": name,
        "targets": {"container_image": {"namespace": "rehost-test", "repository": name}},
        "execution": {"mode": "create_only"},
        "verification": {"enabled": False},
    }
    job: dict[str, Any] = client.post("/v1/jobs", {**body, **fields})
    return job


def forget_images() -> None:
    """Remove the container images of these jobs from the engine."""
    client = docker.from_env()
    for image in client.images.list(filters={"reference": "rehost-test/*"}):
        client.images.remove(str(image.id), force=True)


def wait_for(what: str, look: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """What `look` gives once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.2)
    pytest.fail(f"no {what} within {seconds} s")


def services_of(home: Path, words: bytes) -> list[int]:
    """The processes of the services of that home with these words in their command."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if words in (process / "cmdline").read_bytes() and str(home).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found

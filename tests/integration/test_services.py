"""The services together: a real Prefect server, a real worker, the API, and jobs whose runs are disturbed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.client import Client, rehost_services
from demo.registry import free_port
from rehost.catalog.catalog import Catalog
from rehost.settings import Settings
from tests.integration.conftest import Sshd
from tests.support.running import wait_for
from tests.support.small_server import cpio

_MIB = 1 << 20
_SLOW_KBPS = 4000


class Services(Client):
    """The API, and what the Prefect UI does behind its buttons."""

    def __init__(self, client: Client, prefect_port: int) -> None:
        self.__dict__.update(client.__dict__)
        self._prefect = httpx.Client(base_url=f"http://127.0.0.1:{prefect_port}/api", timeout=60, trust_env=False)

    def events(self, path: str) -> list[dict[str, Any]]:
        """What the events of a stream say, until it ends."""
        with self._http.stream("GET", path) as answer:
            found = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
        return [json.loads(text) for text in found]

    def cancel(self, flow_run_id: str) -> None:
        state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        self._prefect.post(f"/flow_runs/{flow_run_id}/set_state", json=state).raise_for_status()

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._prefect.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()
        return found

    def scheduled(self, job_id: str) -> bool:
        """Whether the job has a schedule in Prefect."""
        found = self._prefect.post("/deployments/filter", json={}).raise_for_status().json()
        return any(schedule["slug"] == job_id for deployment in found for schedule in deployment["schedules"])

    def delete(self, path: str) -> None:
        assert self._http.delete(path).status_code == 204

    def artifacts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._prefect.post("/artifacts/filter", json={}).raise_for_status().json()
        return found


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    prefect_port = free_port()
    environment = {
        "REHOST_HOME": str(tmp_path_factory.mktemp("home")),
        "REHOST_API_PORT": str(free_port()),
        "REHOST_PREFECT_PORT": str(prefect_port),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_URL", raising=False)
        with rehost_services(environment) as client:
            yield Services(client, prefect_port)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree of 48 MiB that does not compress; it has no kernel, so that a disk image of it cannot be built."""
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    (root / "bin").mkdir()
    shutil.copy("/bin/true", root / "bin" / "sh")  # a program tells the architecture
    for number in range(12):
        (root / f"data-{number:02}").write_bytes(os.urandom(4 * _MIB))
    return root


def job_of(
    client: Client, connection: dict[str, Any], incremental: dict[str, Any] | None = None, **replication: Any
) -> dict[str, Any]:
    name = f"tree-{time.monotonic_ns()}"
    source = client.post("/v1/sources", {"name": name, "connection": connection})
    job: dict[str, Any] = client.post(
        "/v1/jobs",
        {
            "source_id": source["id"],
            "region_id": "local",
            "name": name,
            "targets": {"image": {}},
            "execution": {"mode": "create_only"},
            "replication": replication,
            "verification": {"enabled": False},
            "incremental": incremental,
        },
    )
    return job


def rested(client: Client, job_id: str) -> dict[str, Any]:
    """The job once it runs no more."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}")
        return job if job["status"] not in ("Running", "Ready") else None

    found: dict[str, Any] = wait_for("end of the run", look)
    return found


def arrived(client: Client, job_id: str) -> dict[str, Any]:
    """The job once a part of its content has come over the wire, and not all of it."""

    def look() -> dict[str, Any] | None:
        job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}")
        assert job["status"] in ("Ready", "Running"), job["error"]
        return job if job["business_status"] == "Syncing" and job["progress"] >= 15 else None

    found: dict[str, Any] = wait_for("progress", look)
    return found


def agents(root: Path) -> list[int]:
    """The processes that have a file below that folder open, or work there: the agent of a `path` source."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(link) for link in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(link.startswith(str(root)) for link in links):
            found.append(int(process.name))
    return found


def flow_processes() -> list[int]:
    """The processes in which a worker runs flows, among the descendants of this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"prefect.engine" in command or b"flow_engine" in command or b"prefect\0flow-run\0execute" in command:
            found.append(int(process.name))
    return found


def test_an_error_of_a_stage_is_the_error_of_the_job_and_the_message_of_the_flow_run(
    services: Services, tree: Path
) -> None:
    job = job_of(services, {"kind": "path", "root": str(tree)})
    services.post(f"/v1/jobs/{job['id']}/start", {})
    ended = rested(services, job["id"])
    assert ended["status"] == "InError"
    assert ended["error"]["code"] == "Build.NoKernel"
    run = services.newest_run(job["id"])
    assert run["status"] == "failed"
    assert run["bytes_new"] >= 48 * _MIB
    wait_for("state", lambda: services.flow_run(run["flow_run_id"])["state_type"] == "FAILED")
    flow_run = services.flow_run(run["flow_run_id"])
    assert (
        flow_run["state"]["message"]
        == f"{ended['error']['code']}: {ended['error']['message']} {ended['error']['remedy']}"
    )
    assert flow_run["name"].startswith(job["name"])
    assert {f"job:{job['name']}", f"source:{job['name']}"} <= set(flow_run["tags"])
    progress = {a["key"]: a["data"] for a in services.artifacts() if a["type"] == "progress"}
    assert progress[f"{job['id']}-transfer"] == 100


def test_a_run_is_followed_by_its_events_and_its_log_is_a_story(services: Services, tree: Path) -> None:
    job = job_of(services, {"kind": "path", "root": str(tree)}, bandwidth_limit_kbps=2 * _SLOW_KBPS)
    path = f"/v1/jobs/{job['id']}"
    services.post(f"{path}/start", {})
    events = services.events(f"{path}/events")
    assert events[-1]["type"] == "job.result"
    assert events[-1]["job"] == services.get(path)
    assert events[-1]["job"]["error"]["code"] == "Build.NoKernel"
    told = [event for event in events if event["type"] == "job.progress"]
    percents = [event["progress"] for event in told]
    assert percents == sorted(percents)
    assert 0 < percents[-1] < 100  # it failed
    moving = [event for event in told if event["bytes_per_second"]]
    assert moving, "no bytes were told"
    assert all(0 < event["bytes_done"] <= event["bytes_total"] for event in moving)
    assert any(event["eta_seconds"] for event in moving)
    assert all(event["bytes_per_second"] < 3 * _SLOW_KBPS * 1000 for event in moving)
    assert told[-1]["bytes_total"] is None  # no stage is under way any more

    # The last lines come with Prefect's own pace.
    error = wait_for("log", lambda: services.get(f"{path}/logs?level=error")["items"])
    assert [entry["message"].split(":")[0] for entry in error] == ["Build.NoKernel"]
    wait_for("end of the log", lambda: "The job is InError" in services.get(f"{path}/logs")["items"][0]["message"])
    story: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = services.get(f"{path}/logs?order=oldest&limit=7{cursor}")
        story += page["items"]
        assert page["total"] >= len(story)
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert page["total"] == len(story) == len({entry["id"] for entry in story})
    assert [entry["time"] for entry in story] == sorted(entry["time"] for entry in story)
    run = services.newest_run(job["id"])
    assert {entry["run_id"] for entry in story} == {run["id"]}
    stages = [entry["stage"] for entry in story if entry["stage"]]
    assert list(dict.fromkeys(stages)) == ["preflight", "snapshot", "transfer", "build-disk"]
    messages = [entry["message"] for entry in story]
    for wanted in (f"{job['name']} becomes a disk image", "transfer: begins", "transfer: done", "is safe in the store"):
        assert sum(wanted in message for message in messages) == 1, wanted
    for unwanted in ("Traceback", "Finished in state", "Running hook"):
        assert not any(unwanted in message for message in messages), unwanted
    assert any("Finished in state" in e["message"] for e in services.get(f"{path}/logs?level=debug&limit=50")["items"])
    assert services.get(f"{path}/logs?run_id={run['id']}")["total"] == len(story)
    assert set(run["stage_seconds"]) == {"preflight", "snapshot", "transfer"}


def test_stop_ends_the_run_and_its_programs_and_the_next_run_goes_on_from_what_arrived(
    services: Services, tree: Path
) -> None:
    job = job_of(services, {"kind": "path", "root": str(tree)}, bandwidth_limit_kbps=_SLOW_KBPS)
    services.post(f"/v1/jobs/{job['id']}/start", {})
    arrived(services, job["id"])
    assert wait_for("agent", lambda: agents(tree))
    flow_run = services.newest_run(job["id"])["flow_run_id"]
    services.cancel(flow_run)
    assert rested(services, job["id"])["status"] == "Stopped"
    wait_for("end of the agent", lambda: not agents(tree), 10)
    wait_for("state", lambda: services.flow_run(flow_run)["state_type"] == "CANCELLED")

    services.post(f"/v1/jobs/{job['id']}/start", {})
    assert rested(services, job["id"])["error"]["code"] == "Build.NoKernel"  # all stages before it are done
    second = services.newest_run(job["id"])
    assert second["bytes_new"] < 46 * _MIB, "what had arrived was sent again"


def test_a_flow_process_that_is_killed_leaves_a_job_that_says_so_and_can_be_started(
    services: Services, tree: Path
) -> None:
    job = job_of(services, {"kind": "path", "root": str(tree)}, bandwidth_limit_kbps=_SLOW_KBPS)
    before = set(flow_processes())
    services.post(f"/v1/jobs/{job['id']}/start", {})
    arrived(services, job["id"])
    for process in set(flow_processes()) - before:
        os.kill(process, signal.SIGKILL)
    ended = rested(services, job["id"])
    assert (ended["status"], ended["error"]["code"]) == ("InError", "Run.Crashed")
    wait_for("end of the agent", lambda: not agents(tree), 10)
    services.post(f"/v1/jobs/{job['id']}/start", {})
    assert rested(services, job["id"])["error"]["code"] == "Build.NoKernel"


def all_but(folder: Path) -> list[str]:
    """Patterns that leave out everything that is neither the folder, in it, nor above it."""
    patterns = []
    for path in (folder, *folder.parents[:-1]):
        parent = "" if str(path.parent) == "/" else str(path.parent)
        patterns.append(f"{parent}/{path.name}?*")
        for length, letter in enumerate(path.name):
            patterns.append(f"{parent}/{path.name[:length]}[!{letter}]*")
            patterns += [f"{parent}/{path.name[:length]}"] if length else []
    return patterns


def test_a_source_that_goes_away_fails_the_run_after_its_retries_and_the_next_run_goes_on(
    services: Services, sshd: Sshd
) -> None:
    folder = sshd.directory / "moved"
    folder.mkdir(exist_ok=True)
    for number in range(12):
        (folder / f"data-{number:02}").write_bytes(os.urandom(4 * _MIB))
    connection = sshd.connection().model_dump(mode="json")
    source = services.post("/v1/sources", {"name": "here", "connection": connection})
    job = services.post(
        "/v1/jobs",
        {
            "source_id": source["id"],
            "region_id": "local",
            "name": "unplugged",
            "exclude": all_but(folder),
            "replication": {"bandwidth_limit_kbps": _SLOW_KBPS},
            "verification": {"enabled": False},
        },
    )
    arrived(services, job["id"])
    sshd.kill()
    ended = rested(services, job["id"])
    assert (ended["status"], ended["error"]["code"]) == ("InError", "Source.Unreachable")
    sshd.start()
    services.post(f"/v1/jobs/{job['id']}/start", {})
    assert rested(services, job["id"])["error"]["code"] == "Build.NoKernel"
    assert services.newest_run(job["id"])["bytes_on_wire"] < 46 * _MIB, "what had arrived was sent again"


def small_server(root: Path) -> Path:
    """A server of which an image can be built, and that does not start: its kernel is none."""
    version = "6.1.0-1-amd64"
    (root / "boot").mkdir(parents=True)
    (root / "etc").mkdir()
    (root / "bin").mkdir()
    (root / "etc" / "os-release").write_text('ID=debian\nVERSION_ID="12"\n')
    (root / "etc" / "fstab").write_text("")
    shutil.copy("/bin/true", root / "bin" / "sh")
    (root / "boot" / f"vmlinuz-{version}").write_bytes(b"MZ not a kernel" * 1000)
    modules = cpio(*(f"usr/lib/modules/{version}/{name}.ko" for name in ("virtio_blk", "virtio_pci", "ext4")))
    (root / "boot" / f"initrd.img-{version}").write_bytes(gzip.compress(modules))
    return root


@pytest.mark.qemu
def test_a_job_is_verified_again_cut_over_and_deleted(services: Services, tmp_path: Path) -> None:
    name = f"small-{time.monotonic_ns()}"
    connection = {"kind": "path", "root": str(small_server(tmp_path / "small"))}
    source = services.post("/v1/sources", {"name": name, "connection": connection})
    job = services.post(
        "/v1/jobs",
        {
            "source_id": source["id"],
            "region_id": "local",
            "name": name,
            "targets": {"image": {"boot_mode": "bios"}},
            "verification": {"enabled": False},
            "incremental": {"interval_hours": 24},
        },
    )
    path = f"/v1/jobs/{job['id']}"
    first = rested(services, job["id"])
    assert first["status"] == "Waiting", first["error"]
    assert services.scheduled(job["id"])

    asked = services.post(f"{path}/verify", {})
    assert (asked["status"], asked["latest_verification"]["status"]) == ("Waiting", "pending")
    test = f"/v1/verifications/{asked['latest_verification']['id']}"
    wait_for("outcome", lambda: services.get(test)["ended_at"])
    outcome = services.get(test)
    assert (outcome["status"], outcome["error"]["code"]) == ("failed", "Boot.NoBootLoader")
    assert outcome["checks"] and outcome["evidence"]["console_log"]
    assert services.get(path)["status"] == "Waiting"
    wait_for("state", lambda: services.flow_run(outcome["flow_run_id"])["state_type"] == "FAILED")
    assert outcome["error"]["message"] in services.flow_run(outcome["flow_run_id"])["state"]["message"]

    (tmp_path / "small" / "etc" / "new").write_text("since the first run")
    services.post(f"{path}/cut-over", {"sync": True})
    finished = rested(services, job["id"])
    assert (finished["status"], finished["next_run_at"]) == ("Finished", None), finished["error"]
    run = services.newest_run(job["id"])
    assert (run["kind"], run["status"], len(finished["image_ids"])) == ("cut_over", "succeeded", 2)
    wait_for("end of the schedule", lambda: not services.scheduled(job["id"]))
    wait_for("state", lambda: services.flow_run(run["flow_run_id"])["state_type"] == "COMPLETED")

    services.delete(path)
    with pytest.raises(RuntimeError, match=r"Job\.NotFound"):
        services.get(path)
    image = services.get(f"/v1/images/{finished['image_ids'][-1]}")
    assert image["job_id"] == job["id"]
    assert Path(image["disks"][0]["location"]).is_file()


def test_services_that_end_stop_their_runs_in_peace(
    tmp_path: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    environment = {
        "REHOST_HOME": str(tmp_path / "home"),
        "REHOST_API_PORT": str(free_port()),
        "REHOST_PREFECT_PORT": str(free_port()),
    }
    with rehost_services(environment) as client:
        job = job_of(client, {"kind": "path", "root": str(tree)}, bandwidth_limit_kbps=_SLOW_KBPS // 4)
        client.post(f"/v1/jobs/{job['id']}/start", {})
        arrived(client, job["id"])
    assert not agents(tree)
    with Catalog.open(Settings(home=tmp_path / "home")) as catalog:
        ended = catalog.job(job["id"])
    assert (ended.status, ended.error.code if ended.error else None) == ("InError", "Run.Interrupted")

"""The main job on a real server, end to end, as a user would run it; the demo and the end-to-end test are this.

A Debian 12 server is made and booted; it is the source, and stays running. `rehost up` runs the services. A job takes
the server to a disk image and a container image through Prefect, both are started and must show the server's page and
the rows of its database; then the same job runs once more, and sends only what changed. Every word of the last line
was observed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker.errors

from demo.client import Client, rehost_services
from demo.registry import free_port, registry
from demo.server import HOSTNAME, PAGE, Server, build_server_disk, running_server, server_tree
from rehost.engine import engine

log = logging.getLogger("demo")

# Emulated boots vary fourfold with the load: four times what was seen.
BOOT_SECONDS = 900.0
RUN_SECONDS = 3600.0

# Runs inside each copy: the page as nginx gives it, and how many rows each machine has written, with a digest.
SCRIPT = """set -e
for _ in $(seq 120); do [ "$(redis-cli ping 2>/dev/null)" = PONG ] && break; sleep 1; done
python3 - <<'END'
import hashlib, json, subprocess, urllib.request
page = urllib.request.urlopen("http://127.0.0.1/", timeout=60).read()
rows = subprocess.check_output(["redis-cli", "--raw", "lrange", "ledger", "0", "-1"]).decode().splitlines()
boots = {}
for row in rows:
    boots.setdefault(row.split()[1], []).append(row)
print(json.dumps({
    "page": hashlib.sha256(page).hexdigest(),
    "ledger": {b: [len(r), hashlib.sha256("\\n".join(r).encode()).hexdigest()] for b, r in boots.items()},
}))
END
"""


class DemoFailed(Exception):
    """What was promised was not observed."""


def ledger(server: Server) -> list[str]:
    """The rows that the server's database holds now."""
    return server.ssh("redis-cli --raw lrange ledger 0 -1").splitlines()


def compare(output: str, rows_before: int, rows_now: list[str]) -> int:
    """The rows of the source that a copy holds: a beginning of what the source has, at least as it was before the run.

    Raises DemoFailed where the copy has another page, or other rows.
    """
    told = json.loads(output.strip().splitlines()[-1])
    if told["page"] != hashlib.sha256(PAGE.encode()).hexdigest():
        raise DemoFailed("the copy's nginx gives another page than the source's")
    boot = rows_now[0].split()[1]
    count, digest = told["ledger"].get(boot, (0, ""))
    if count < rows_before:
        raise DemoFailed(f"the copy holds {count} rows; the source had {rows_before} before the run")
    if digest != hashlib.sha256("\n".join(rows_now[:count]).encode()).hexdigest():
        raise DemoFailed("the copy's rows are not a beginning of the source's rows")
    return int(count)


def migrate(client: Client, server: Server) -> dict[str, Any]:
    """Register the server, run a job of it once, and collect what was seen."""
    source = client.post(
        "/v1/sources",
        {
            "name": HOSTNAME,
            "connection": {
                "kind": "ssh",
                "host": "127.0.0.1",
                "port": server.port,
                "user": "root",
                "identity_file": str(server.identity_file),
                "known_hosts": str(server.known_hosts),
            },
        },
    )
    found = source["inventory"]
    log.info("registered %s: %s, kernel %s", source["id"], found["os_name"], found["kernel"])
    rows_before = len(ledger(server))
    job = client.post(
        "/v1/jobs",
        {
            "source_id": source["id"],
            "region_id": "local",
            "name": "move-the-shop",
            "targets": {
                "image": {"formats": ["qcow2"], "boot_mode": "both"},
                "container_image": {"namespace": "demo", "repository": HOSTNAME},
            },
            "replication": {"compress_level": 1},
            "incremental": {"interval_hours": 24, "max_images": 3},
            "verification": {"boot_timeout_seconds": int(BOOT_SECONDS), "script": SCRIPT},
        },
    )
    log.info("job %s: %s", job["id"], job["prefect_url"])
    return {"source": source["id"], "job": job["id"], **pass_of(client, server, job["id"], rows_before)}


def migrate_again(client: Client, server: Server, first: dict[str, Any]) -> dict[str, Any]:
    """Run the same job once more: what was seen of both runs. Raises DemoFailed where it sent more than changed."""
    rows_before = len(ledger(server))
    before = client.newest_run(first["job"])["id"]
    client.post(f"/v1/jobs/{first['job']}/start", {})
    second = pass_of(client, server, first["job"], rows_before, before)
    moved = second["bytes_on_wire"]
    if moved >= 0.05 * first["bytes_on_wire"]:
        raise DemoFailed(f"the second run moved {moved} of {first['bytes_on_wire']} bytes")
    runs = first.pop("flow_runs") + second.pop("flow_runs")
    return {
        **first,
        "disk_image": second["disk_image"],
        "container_image": second["container_image"],
        "second_run_bytes_on_wire": moved,
        "flow_runs": runs,
    }


def pass_of(client: Client, server: Server, job_id: str, rows_before: int, before: str | None = None) -> dict[str, Any]:
    """Wait for the pass that is under way, another one than the run `before`; what it left behind, looked at.

    Raises DemoFailed, RuntimeError, TimeoutError.
    """
    client.wait_for_job(job_id, "Waiting", RUN_SECONDS)
    run = client.newest_run(job_id)
    seen = observed(client, job_id, run)
    rows_now = ledger(server)
    held = [compare(v["script_output"], rows_before, rows_now) for v in seen.pop("verifications")]
    log.info("page and rows are the source's in all %d copies (%s rows)", len(held), ", ".join(map(str, held)))
    if run["id"] == before:
        raise DemoFailed("there was no new run")
    return {"bytes_on_wire": run["bytes_on_wire"], **seen, "flow_runs": [run["flow_run_id"]]}


def observed(client: Client, job_id: str, run: dict[str, Any]) -> dict[str, Any]:
    """What a run left behind, looked at: the files against their digests, and each verification's outcome."""
    images = {i["kind"]: i for i in (client.get(f"/v1/images/{id}") for id in run["image_ids"])}
    verifications = [
        v for v in client.get(f"/v1/jobs/{job_id}/verifications?limit=50")["items"] if v["run_id"] == run["id"]
    ]
    by_subject = {_kind_of(v): v for v in reversed(verifications)}  # the newest, where one was tried again
    disk = images["disk"]["disks"][0]
    with Path(disk["location"]).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != disk["sha256"]:
        raise DemoFailed("the disk image's file has another digest than its record")
    container = images["container"]
    return {
        "verifications": list(by_subject.values()),
        "disk_image": {
            "path": disk["location"],
            "sha256": digest,
            "bios_boot": by_subject["bios"]["status"],
            "uefi_boot": by_subject["uefi"]["status"],
        },
        "container_image": {
            "reference": container["reference"],
            "digest": container["digest"],
            "run": by_subject["container"]["status"],
        },
    }


def _kind_of(verification: dict[str, Any]) -> str:
    subject = verification["subject"].lower()
    return next((kind for kind in ("bios", "uefi") if kind in subject), "container")


def forget(home: Path) -> None:
    """Remove what an earlier run left: its folder, and its images in the engine, which outlive it."""
    for record in home.glob("rehost/images/*/*/image.json"):
        engine_id = json.loads(record.read_text(encoding="utf-8")).get("engine_id")
        if engine_id is not None:
            with engine("remove the image of an earlier demo") as client, contextlib.suppress(docker.errors.NotFound):
                client.images.remove(engine_id, force=True)
    shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def the_shop_and_rehost(home: Path) -> Iterator[tuple[Client, Server]]:
    """The server, a registry and `rehost up`, all running for the length of a block. `home` is made anew."""
    forget(home)
    server_folder, registry_folder = home / "server", home / "registry"
    for folder in (server_folder, registry_folder):
        folder.mkdir(parents=True)
    tree = server_tree()
    log.info("making the server's disk")
    disk = build_server_disk(tree, server_folder)
    log.info("booting the server")
    with (
        running_server(disk, server_folder, home / "accelerator.json", BOOT_SECONDS) as server,
        registry(registry_folder) as registry_address,
    ):
        log.info("the server answers on port %d, by %s", server.port, server.machine.spec.accelerator)
        environment = {
            "REHOST_HOME": str(home / "rehost"),
            "REHOST_CONFIG": str(home / "no.toml"),  # what the user has configured is not for the demo
            "REHOST_API_PORT": str(free_port()),
            "REHOST_PREFECT_PORT": str(free_port()),
            "REHOST_REGIONS": json.dumps({"local": {"registry": registry_address, "registry_insecure": True}}),
        }
        with rehost_services(environment) as client:
            yield client, server

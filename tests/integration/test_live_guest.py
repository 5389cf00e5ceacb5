"""A server that is written to without pause is copied block by block through the services, twice, with its tracker."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.client import Client, rehost_services
from demo.registry import free_port
from demo.server import Server, build_server_disk, cache_folder, running_server, server_tree
from rehost.replication.open_store import open_store
from rehost.run import find
from rehost.settings import Settings
from rehost.source.connect import SshConnection
from rehost.source.tracked_pass import remove_tracker

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(
        any(find(p) is None for p in ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "e2fsck", "debugfs")),
        reason="QEMU, mmdebstrap or e2fsprogs are not installed",
    ),
]

_MIB = 1 << 20
_BOOT_SECONDS = 900.0
_RUN_SECONDS = 1200.0
_LOG, _FOLDER = "/srv/busy.log", "/srv/busy"
_ROOT = "0_3"

# Each file says what it holds, and each number is on the disk before the next is begun; nothing waits in between.
_WRITER = f"""
import hashlib, os, random
os.makedirs("{_FOLDER}", exist_ok=True)
told = os.open("{_LOG}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
number = 0
while True:
    number += 1
    body = os.urandom(random.choice((10, 900, 5000, 40000, 200000, 600000)))
    file = os.open("{_FOLDER}/new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(file, hashlib.sha256(body).hexdigest().encode() + body)
    os.fsync(file)
    os.close(file)
    os.rename("{_FOLDER}/new", "{_FOLDER}/%d" % random.randrange(200))
    if number % 3 == 0:
        try:
            os.unlink("{_FOLDER}/%d" % random.randrange(200))
        except OSError:
            pass
    os.write(told, b"%d\\n" % number)
    os.fsync(told)
"""
_LEFT = """
systemctl list-units --all --no-legend 'rehost*'
find /run /tmp -name 'rehost*'
pgrep -fa '[r]ehost-track'
mkdir /run/look && mount -t tracefs nodev /run/look && ls /run/look/instances | grep rehost
umount /run/look; rmdir /run/look
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    made = build_server_disk(server_tree(), folder)
    with running_server(made, folder, cache_folder() / "accelerator.json", _BOOT_SECONDS) as running:
        running.ssh(f"cat > /usr/local/sbin/writer <<'END'\n{_WRITER}END")
        running.ssh("systemd-run -q --unit writer python3 /usr/local/sbin/writer")
        yield running


def _copied(client: Client, home: Path, job_id: str, server: Server) -> dict[str, Any]:
    """A run of the job: its record, and what of it is looked at.

    The writer goes on until the copy is complete, and rests while the image is built and booted.
    """
    before = client.get(f"/v1/jobs/{job_id}/runs?limit=1")["total"]
    server.ssh("systemctl kill -s CONT writer")
    client.post(f"/v1/jobs/{job_id}/start", {})
    deadline = time.monotonic() + _RUN_SECONDS
    while client.get(f"/v1/jobs/{job_id}")["business_status"] != "Processing":
        runs = client.get(f"/v1/jobs/{job_id}/runs?limit=1")
        assert time.monotonic() < deadline and (runs["total"] == before or runs["items"][0]["error"] is None), runs
        time.sleep(0.5)
    server.ssh("systemctl kill -s STOP writer")
    client.wait_for_job(job_id, "Waiting", _RUN_SECONDS)
    run = client.newest_run(job_id)
    with open_store(Settings(home=home)) as store:
        snapshot = store.snapshot(run["snapshot_id"])
    (root,) = (region for region in snapshot.regions if region.device == _ROOT)
    assert [(one.mount_point, one.method) for one in snapshot.consistency] == [("/", "freeze")]
    (disk,) = client.get(f"/v1/images/{run['image_ids'][0]}")["disks"]
    return {**run, "disk": Path(disk["location"]), "root": root}


def _numbers(text: str) -> list[int]:
    return [int(line) for line in text.splitlines()]


def _judge(run: dict[str, Any], server: Server, folder: Path) -> list[int]:
    """The numbers in the copy's log; its filesystem is sound as it is, and every file holds what it says."""
    folder.mkdir()
    root = folder / "root.img"
    place = [f"skip={run['root'].start // _MIB}", f"count={-(-run['root'].size_bytes // _MIB)}"]
    argv = ["dd", f"if={run['disk']}", f"of={root}", "bs=1M", "conv=sparse", "status=none", *place]
    subprocess.run(argv, check=True)
    root.open("r+b").truncate(run["root"].size_bytes)
    told = subprocess.run(["e2fsck", "-fn", root], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-3000:]
    for what in (_LOG, _FOLDER):
        subprocess.run(["debugfs", "-R", f"rdump {what} {folder}", root], check=True, capture_output=True)
    held = _numbers((folder / Path(_LOG).name).read_text())
    assert held == list(range(1, len(held) + 1))
    assert _numbers(server.ssh(f"cat {_LOG}"))[: len(held)] == held
    files = [path.read_bytes() for path in (folder / Path(_FOLDER).name).iterdir() if path.name != "new"]
    assert len(files) > 10
    assert all(hashlib.sha256(content[64:]).hexdigest().encode() == content[:64] for content in files)
    root.unlink()
    return held


def _wait_for_proof(client: Client, job_id: str) -> None:
    """The copy's test boot, which the job was asked for, succeeds."""
    deadline = time.monotonic() + _RUN_SECONDS
    while (newest := client.get(f"/v1/jobs/{job_id}/verifications?limit=1")["items"][0])["status"] != "succeeded":
        assert time.monotonic() < deadline and newest["status"] != "failed", newest
        time.sleep(1)


def test_a_server_that_is_written_to_is_copied_in_blocks_and_then_what_was_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = tmp_path / "home"
    environment = {
        "REHOST_HOME": str(home),
        "REHOST_CONFIG": str(tmp_path / "no.toml"),
        "REHOST_API_PORT": str(free_port()),
        "REHOST_PREFECT_PORT": str(free_port()),
    }
    source = SshConnection(
        host="127.0.0.1",
        port=server.port,
        identity_file=str(server.identity_file),
        known_hosts=str(server.known_hosts),
    )
    partitions = [{"device": f"0_{number}", "block": True} for number in (1, 2, 3)]
    with rehost_services(environment) as client:
        registered = client.post("/v1/sources", {"name": "busy", "connection": source.model_dump(mode="json")})
        spec = {
            "source_id": registered["id"],
            "region_id": "local",
            "name": "busy",
            "targets": {"image": {"formats": ["raw"], "boot_mode": "bios"}},
            "disks": {"block_replication": True, "change_tracking": True, "system": {"partitions": partitions}},
            "execution": {"mode": "create_only"},
            "replication": {"compress_level": 1},
            "incremental": {"interval_hours": 24},
            "verification": {"enabled": False},
        }
        job = client.post("/v1/jobs", spec)["id"]
        first = _copied(client, home, job, server)
        held = _judge(first, server, tmp_path / "first")
        unit = f"rehost-track-{job}.service"
        assert server.ssh(f"systemctl is-active {unit}").strip() == "active"

        second = _copied(client, home, job, server)
        assert len(_judge(second, server, tmp_path / "second")) > len(held)

        client.post(f"/v1/jobs/{job}/verify", {})
        _wait_for_proof(client, job)
    assert second["bytes_scanned"] < first["bytes_scanned"] / 2
    assert second["bytes_on_wire"] < first["bytes_on_wire"] / 2
    assert remove_tracker(source, job) is None
    assert server.ssh(f"{_LEFT}true").strip() == ""

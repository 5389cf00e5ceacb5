"""An incremental job of a live server, by its schedule, which outlives the services: syncs follow one another, old
images go, the newest boots."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from demo.client import Client, rehost_services
from demo.registry import free_port
from demo.server import cache_folder
from rehost.replication.open_store import open_store
from rehost.replication.tree import Tree
from rehost.run import find
from rehost.settings import Settings
from rehost.verification.accelerator import kernel_of
from rehost.verification.boot import verify_disk
from tests.support.live_root import HOSTNAME, LiveRoot, live_root, missing

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.root,  # mounts the server's filesystem
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem"),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
    pytest.mark.skipif(find("qemu-system-x86_64") is None, reason="needs QEMU"),
]

_SYNCS = int(os.environ.get("SYNCS", "3"))  # SYNCS=5 takes two minutes more and shows the same
_KEPT = _SYNCS // 2 + _SYNCS % 2
_RUN_SECONDS = 600.0
_BOOT_SECONDS = 900
_DATABASE = "/srv/rows.db"

_INSERT = """python3 - <<'END'
import sqlite3
with sqlite3.connect("{database}") as rows:
    rows.execute("create table if not exists rows (number integer primary key, text)")
    rows.executemany("insert into rows (text) values (?)", [("row of batch {batch}",)] * 10)
END
echo 'batch {batch}' >> /srv/log
sync
"""
# In the copy, as in the server.
_SELECT = f"""python3 - <<'END'
import json, sqlite3
rows = sqlite3.connect("{_DATABASE}")
print(json.dumps({{
    "whole": rows.execute("pragma integrity_check").fetchone()[0],
    "rows": rows.execute("select number, text from rows order by number").fetchall(),
    "log": open("/srv/log").read().split("\\n"),
}}))
END
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveRoot]:
    folder = tmp_path / "server"
    folder.mkdir()
    with live_root(folder) as running:
        yield running


def _wait_for(what: str, look: Callable[[], Any], seconds: float = _RUN_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.5)
    return found


def _runs(client: Client, job_id: str) -> list[dict[str, Any]]:
    """Of the job, oldest first. The services may end while one is under way."""
    found: list[dict[str, Any]] = client.get(f"/v1/jobs/{job_id}/runs?limit=50")["items"]
    assert {run["error"]["code"] for run in found if run["error"]} <= {"Run.Interrupted"}, found
    return found[::-1]


def _succeeded(client: Client, job_id: str) -> list[dict[str, Any]]:
    return [run for run in _runs(client, job_id) if run["status"] == "succeeded"]


def _images(client: Client, job_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get(f"/v1/jobs/{job_id}/images?limit=50")["items"]
    return found


def _stopped(client: Client, job_id: str) -> bool:
    """Stop the job where it may be stopped: while it waits, or copies."""
    try:
        client.post(f"/v1/jobs/{job_id}/stop", {})
    except RuntimeError as error:
        assert "Job.Invalid" in str(error)
    return bool(client.get(f"/v1/jobs/{job_id}")["status"] == "Stopped")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def test_syncs_by_the_schedule_leave_the_newest_images_and_the_newest_has_the_newest_rows(
    server: LiveRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = tmp_path / "home"
    environment = {
        "REHOST_HOME": str(home),
        "REHOST_CONFIG": str(tmp_path / "no.toml"),
        "REHOST_API_PORT": str(free_port()),
        "REHOST_PREFECT_PORT": str(free_port()),
        "REHOST_HOUR_SECONDS": "20",
    }
    server.ssh(_INSERT.format(database=_DATABASE, batch=0))
    with rehost_services(environment) as client:
        connection = server.connection().model_dump(mode="json")
        source = client.post("/v1/sources", {"name": HOSTNAME, "connection": connection})
        job_id = client.post(
            "/v1/jobs",
            {
                "source_id": source["id"],
                "region_id": "local",
                "name": HOSTNAME,
                "targets": {"image": {"formats": ["raw"], "boot_mode": "bios"}},
                "consistency": {"method": "live"},
                "replication": {"compress_level": 1},
                "incremental": {"interval_hours": 1, "max_images": _KEPT},
                "verification": {"enabled": False},
            },
        )["id"]
        inserted: list[float] = [0.0]  # when each batch was there

        for sync in range(1, _SYNCS):
            _wait_for(f"sync {sync}", lambda: len(_succeeded(client, job_id)) >= sync)  # noqa: B023 - called at once
            server.ssh(_INSERT.format(database=_DATABASE, batch=sync))
            inserted.append(time.time())
    with rehost_services(environment) as client:  # its schedule goes on
        _wait_for("last sync", lambda: len(_succeeded(client, job_id)) >= _SYNCS)
        _wait_for("stop", lambda: _stopped(client, job_id))
        runs = _runs(client, job_id)
        succeeded = [run for run in runs if run["status"] == "succeeded"]
        _wait_for("deletion", lambda: len(_images(client, job_id)) == _KEPT)
        images = _images(client, job_id)

        # The newest are left, and nothing else, in the catalog and in the folder.
        kept = [image_id for run in succeeded[-_KEPT:] for image_id in run["image_ids"]]
        assert [image["id"] for image in images][::-1] == kept
        assert client.get(f"/v1/jobs/{job_id}")["image_ids"] == kept
        assert [run["image_ids"] for run in succeeded[:-_KEPT]] == [[]] * (len(succeeded) - _KEPT)
        folder = home / "images" / "local"
        _wait_for("removal", lambda: sorted(path.name for path in folder.iterdir()) == sorted(kept), 60)
    kinds = [run["kind"] for run in succeeded]
    assert kinds == ["manual"] + ["schedule"] * (len(kinds) - 1) and len(kinds) >= _SYNCS
    for before, after in itertools.pairwise(runs):
        assert _time(before["ended_at"]) <= _time(after["started_at"]), "two runs at once"
    first, *others = succeeded
    assert all(0 < run["bytes_new"] < first["bytes_new"] / 10 for run in others), "what was there is not sent again"

    with open_store(Settings(home=home)) as store:
        newest = store.snapshot(succeeded[-1]["snapshot_id"])
        snapshots = {snapshot.id for snapshot in store.snapshots()}
        kernel = tmp_path / "vmlinuz"
        kernel.write_bytes(kernel_of(Tree(store.files(newest.id), store)) or b"")
    assert snapshots == {run["snapshot_id"] for run in succeeded[-_KEPT:]} | {
        run["snapshot_id"] for run in runs if run["status"] != "succeeded" and run["snapshot_id"]
    }
    (disk,) = images[0]["disks"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    report = verify_disk(
        Path(disk["location"]),
        disk["format"],
        "bios",
        # The server shares the network of this machine, whose ports are not its own.
        newest.inventory.model_copy(update={"listeners": ()}),
        evidence=tmp_path / "evidence",
        scratch=scratch,
        cache=cache_folder() / "accelerator.json",
        kernel=kernel,
        timeout_seconds=_BOOT_SECONDS,
        script=_SELECT,
    )
    assert report.status == "succeeded", report.error
    copy, now = json.loads((report.script_output or "").strip().splitlines()[-1]), json.loads(server.ssh(_SELECT))
    began = _time(succeeded[-1]["started_at"]).timestamp()
    expected = sum(at < began for at in inserted)
    assert expected >= _SYNCS - 1, "each sync has rows of its own"
    assert copy["whole"] == "ok"
    assert len(copy["rows"]) >= 10 * expected
    assert copy["rows"] == now["rows"][: len(copy["rows"])]
    assert copy["log"][:expected] == [f"batch {batch}" for batch in range(expected)]

"""The command line against the API as a real server on a free port.

What the API asks of Prefect is written down by a stand-in, as in the tests of the API.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.dependencies import get_orchestration
from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Figures, Source
from rehost.cli import main as cli
from rehost.cli.client import base_url, exit_code_of
from rehost.errors import OrchestrationAway, SourceUnreachable, error_classes
from rehost.settings import Settings, settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory, Volume


class Orders:
    """Stands in for flows.orchestration."""

    def __init__(self) -> None:
        self.away = False
        self.started: list[str] = []

    async def start_run(self, job_id: str, **facts: Any) -> str:
        if self.away:
            raise OrchestrationAway(url="http://prefect", reason="refused")
        self.started.append(job_id)
        return "flow-1"

    async def start_verification(self, job_id: str, **facts: Any) -> str:
        return f"flow-verify-{job_id}"

    async def cancel_run(self, flow_run_id: str) -> None:
        pass

    async def schedule_job(self, job_id: str, **facts: Any) -> None:
        pass

    async def unschedule_job(self, job_id: str) -> None:
        pass


class Ready(uvicorn.Server):
    """A server that says when it answers."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.answers = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answers.set()


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    home = tmp_path_factory.mktemp("home")
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REHOST_HOME", str(home))
        patch.setenv("REHOST_API_PORT", str(port))
        patch.setenv("REHOST_API_KEYS", "key-of-the-test,another")
        patch.setenv("REHOST_CONFIG", str(home / "none.toml"))
        settings.cache_clear()
        orders = Orders()
        app = create_app(settings())
        app.dependency_overrides[get_orchestration] = lambda: orders
        app.state.orders = orders
        server = Ready(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        assert server.answers.wait(60)
        global _app
        _app = app
        yield settings()
        server.should_exit = True
        thread.join(30)
    settings.cache_clear()


_app: FastAPI


@pytest.fixture
def orders(configured: Settings) -> Orders:
    found = _app.state.orders
    assert isinstance(found, Orders)
    found.away = False
    return found


@pytest.fixture
def catalog(configured: Settings) -> Catalog:
    found = _app.state.catalog
    assert isinstance(found, Catalog)
    return found


@pytest.fixture
def source(catalog: Catalog) -> Source:
    inventory = Inventory(
        hostname="web1",
        os_id="debian",
        os_name="Debian \x1b[31mred [bold]12",
        architecture="x86_64",
        volumes=(Volume(mount_point="/", filesystem="ext4", size_bytes=9 << 30, used_bytes=5 << 30),),
    )
    return catalog.add_source(PathConnection(root="/srv/web1"), inventory)


class Said:
    """What a command said, and how it ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def rehost(configured: Settings, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*words: str) -> Said:
        capsys.readouterr()
        try:
            status = cli.main(words)
        except SystemExit as left:  # argparse
            status = int(str(left.code))
        captured = capsys.readouterr()
        return Said(status, captured.out, captured.err)

    return call


def test_a_server_is_added_listed_shown_and_discovered_again(rehost: Any, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text("shop\n")
    (tmp_path / "etc/os-release").write_text("ID=debian\n")
    added = rehost("source", "add", "--path", str(tmp_path), "--name", "shop", "--tag", "team=web", "--json")
    assert (added.status, added.json["name"], added.json["tags"]) == (0, "shop", {"team": "web"})
    id = added.json["id"]
    assert id in rehost("source", "list").out
    assert rehost("source", "list", "--json", "--limit", "1").json["items"][0]["id"] == id
    assert "shop" in rehost("source", "show", id).out
    assert rehost("source", "discover", id, "--json").json["inventory"]["hostname"] == "shop"


def test_the_words_for_ssh_become_its_connection(rehost: Any) -> None:
    parse = cli.parser().parse_args
    from rehost.cli.source import _connection

    words = ["source", "add", "--ssh", "root@[::1]:2222", "--identity-file", "/k", "--sudo"]
    assert _connection(parse(words)) == {
        "kind": "ssh",
        "host": "::1",
        "user": "root",
        "port": 2222,
        "identity_file": "/k",
        "sudo": True,
    }
    assert _connection(parse(["source", "add", "--ssh", "web1"])) == {"kind": "ssh", "host": "web1"}


def test_what_a_source_says_of_itself_is_no_markup_and_controls_no_terminal(rehost: Any, source: Source) -> None:
    for words in (("source", "show", source.id), ("source", "list", "--limit", "50")):
        said = rehost(*words)
        assert "red [bold]12" in said.out
        assert "\x1b" not in said.out


def test_a_job_is_planned_created_shown_listed_and_started(
    rehost: Any, source: Source, orders: Orders, catalog: Catalog, tmp_path: Path
) -> None:
    words = (
        "--container",
        "shop/web:v1",
        "--format",
        "raw",
        "--format",
        "vhd",
        "--exclude",
        "/var/cache",
        "--checksum",
    )
    planned = rehost("job", "plan", source.id, *words, "--json")
    assert planned.status == 0
    assert planned.json["container_reference"] == "shop/web:v1"
    assert planned.json["formats"] == ["raw", "vhd"]
    assert planned.json["spec"]["replication"]["checksum"] is True
    assert "5.0 GiB" in rehost("job", "plan", source.id, *words).out
    name = f"web-{source.id[2:8]}"
    created = rehost("job", "create", source.id, *words, "--name", name, "--every", "6", "--create-only", "--json")
    assert (created.status, created.json["status"]) == (0, "Ready")
    assert created.json["incremental"]["interval_hours"] == 6
    id = created.json["id"]
    assert name in rehost("job", "list", "--status", "Ready").out
    assert rehost("job", "list", "--json", "--name", name).json["total"] == 1
    assert "Start the job." in rehost("job", "show", id).out
    assert rehost("job", "start", id, "--json").json["status"] == "Running"
    assert orders.started[-1] == id
    busy = rehost("job", "start", id)
    assert busy.status == 11
    assert "Job.InvalidStatus" in busy.err
    refused = rehost("job", "stop", id)
    assert (refused.status, "Preparing" in refused.err) == (11, True)


def test_the_bandwidth_of_a_job_is_set_and_changed(rehost: Any, source: Source) -> None:
    windows = ("--bandwidth-window", "mon-fri 08:00-18:00 2000", "--bandwidth-timezone", "Europe/Berlin")
    job = rehost("job", "create", source.id, "--create-only", "--compress-level", "3", *windows, "--json").json
    assert job["replication"]["bandwidth_calendar"][0]["from"] == "08:00"
    changed = rehost("job", "update", job["id"], "--bandwidth-limit-kbps", "500", "--no-bandwidth-windows", "--json")
    assert changed.status == 0
    expected = {"bandwidth_limit_kbps": 500, "bandwidth_calendar": [], "compress_level": 3}
    assert expected.items() <= changed.json["replication"].items()
    assert changed.json["replication"]["bandwidth_timezone"] == "Europe/Berlin"
    assert rehost("job", "update", job["id"]).status == 2
    wrong = rehost("job", "update", job["id"], "--bandwidth-window", "8-18 5")
    assert (wrong.status, "/replication/bandwidth_calendar/0/from" in wrong.err) == (2, True)


def test_a_job_is_changed_by_the_words_that_make_one(rehost: Any, source: Source, tmp_path: Path) -> None:
    words = ("--create-only", "--every", "5", "--tag", "a=1", "--tag", "b=2", "--exclude", "/tmp")
    job = rehost("job", "create", source.id, *words, "--json").json
    change = tmp_path / "change.json"
    change.write_text(json.dumps({"verification": {"boot_timeout_seconds": 99}, "name": "no"}))
    named = ("--name", f"web-{job['id'][2:6]}x", "--description", "The shop", "--format", "raw", "--format", "vhd")
    times = ("--cron", "0 3 * * *", "--timezone", "Europe/Berlin", "--max-images", "7")
    more = ("--tag", "c=3", "--no-tag", "a", "--exclude", "/srv", "--compress-level", "2", "--file", str(change))
    after = rehost("job", "update", job["id"], *named, *times, *more, "--json").json
    assert (after["name"], after["description"]) == (named[1], "The shop")
    assert after["incremental"] == {
        "interval_hours": None,
        "cron": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "max_images": 7,
    }
    assert (after["tags"], after["exclude"]) == ({"b": "2", "c": "3"}, ["/srv"])
    assert after["targets"]["image"]["formats"] == ["raw", "vhd"]
    assert (after["replication"]["compress_level"], after["verification"]["boot_timeout_seconds"]) == (2, 99)
    assert rehost("job", "update", job["id"], "--now", "--create-only").status == 2
    started = rehost("job", "update", job["id"], "--now", "--json").json
    assert started["status"] == "Running"
    late = rehost("job", "update", job["id"], "--exclude", "/x", "--max-images", "1")
    assert late.status == 11 and "/exclude: can change in Ready" in late.err
    assert "/incremental: can change in Ready, Waiting" in late.err


def test_sources_and_jobs_are_made_from_a_file(rehost: Any, tmp_path: Path) -> None:
    tree = tmp_path / "web7"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/hostname").write_text("web7\n")
    servers = tmp_path / "servers.csv"
    servers.write_text(f"name,path\nweb7,{tree}\naway,{tmp_path}/none\n")
    part = rehost("source", "add", "--from", str(servers), "--json")
    assert (part.status, [item["outcome"] for item in part.json["items"]]) == (3, ["created", "failed"])
    again = rehost("source", "add", "--from", str(servers))
    assert again.status == 3 and "known" in again.out and "Source." in again.out and "1 of 2 rows" in again.err
    jobs = tmp_path / "jobs.csv"
    jobs.write_text("source,execution,tags\nweb7,create_only,a=b\n")
    planned = rehost("job", "create", "--from", str(jobs), "--dry-run")
    assert planned.status == 0 and "valid" in planned.out and "web7, 0 bytes to read." in planned.out
    made = rehost("job", "create", "--from", str(jobs), "--idempotency-key", f"k-{tmp_path.name}", "--json")
    assert made.status == 0 and made.json["items"][0]["job"]["status"] == "Ready"
    assert rehost("job", "create", "--from", str(jobs)).status == 1, "the source has an unfinished job"
    jobs.write_text("server\nweb7\n")
    assert rehost("job", "create", "--from", str(jobs)).status == 2
    mixed = rehost("job", "create", "s-1", "--from", str(jobs), "--max-images", "3")
    assert mixed.status == 2 and "leave max-images, source out" in mixed.err
    assert rehost("source", "add", "--from", str(tmp_path / "none.csv")).status == 2
    assert rehost("source", "add", "--path", "/x", "--dry-run").status == 2
    source = part.json["items"][0]["source"]["id"]
    assert rehost("job", "create", source, "--dry-run", "--json").json["dry_run"] is True


def test_a_plan_with_a_walk_tells_what_travels_and_what_does_not(
    rehost: Any, catalog: Catalog, source: Source, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/file").write_bytes(b"x" * 2048)
    (tmp_path / "file").write_bytes(b"x" * 5000)
    volume = Volume(mount_point="/", filesystem="ext4", size_bytes=1 << 30, used_bytes=1 << 30)
    facts = source.inventory.model_copy(update={"volumes": (volume,)})
    id = catalog.add_source(PathConnection(root=str(tmp_path)), facts).id
    told = rehost("job", "plan", id, "--scan", "--exclude", "/cache")
    assert told.status == 0
    for word in ("4.9 KiB", "/cache", "2.0 KiB", "Files that changed", "assumed"):
        assert word in told.out, (word, told.out)
    walked = rehost("job", "plan", id, "--scan", "--json").json["survey"]
    assert (walked["files_to_read"], walked["bytes_to_read"]) == (2, 7048)


def test_a_job_may_be_read_from_a_file_and_options_go_over_it(rehost: Any, source: Source, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    spec = {"source_id": source.id, "targets": {"image": {"formats": ["raw"]}}, "exclude": ["/tmp"]}
    file.write_text(json.dumps(spec))
    planned = rehost("job", "plan", "--file", str(file), "--boot-mode", "uefi", "--json").json
    assert (planned["formats"], planned["boot_mode"], planned["exclude"]) == (["raw"], "uefi", ["/tmp"])


def test_a_job_is_watched_to_its_end_in_json_lines(
    rehost: Any, source: Source, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = rehost("job", "create", source.id, "--no-verification", "--json").json["id"]
    run = catalog.claim_run(id, flow_run_id="flow-1")
    catalog.set_stage(id, "Syncing")
    catalog.set_progress(id, 40, 3)
    saw_it = threading.Event()
    show = catalog.job

    def finish() -> None:
        assert saw_it.wait(60)
        image_id = "m-" + id[2:]
        catalog.add_image(id, run.id, Figures(), id=image_id, kind="disk", name=f"i{id}")
        catalog.finish_run(run.id)

    def seen(job_id: str) -> Any:
        job = show(job_id)
        saw_it.set()
        return job

    monkeypatch.setattr(catalog, "job", seen)  # to know when the watcher has looked
    thread = threading.Thread(target=finish)
    thread.start()
    try:
        watched = rehost("job", "watch", id)
    finally:
        thread.join(60)
    lines = [json.loads(line) for line in watched.out.splitlines()]
    assert watched.status == 0
    assert [line["type"] for line in lines[:-1]] == ["job.progress"] * (len(lines) - 1)
    assert (lines[0]["business_status"], lines[0]["progress"], lines[0]["eta_seconds"]) == ("Syncing", 40, 3)
    assert lines[-1]["type"] == "job.result"
    assert lines[-1]["job"]["status"] == "Finished"
    [image] = [i for i in rehost("image", "list", "--json").json["items"] if i["job_id"] == id]
    assert image["id"] in rehost("image", "list").out
    assert image["id"] in rehost("image", "show", image["id"]).out
    assert rehost("image", "show", image["id"], "--json").json == image


def test_the_exit_code_of_a_watch_is_that_of_the_error(rehost: Any, source: Source, catalog: Catalog) -> None:
    id = rehost("job", "create", source.id, "--json").json["id"]
    run = catalog.claim_run(id, flow_run_id="flow-1")
    catalog.fail_run(run.id, SourceUnreachable(host="web1", reason="refused"))
    watched = rehost("job", "watch", id)
    assert watched.status == SourceUnreachable.exit_code == 10
    assert "Source.Unreachable" in watched.err
    assert SourceUnreachable.remedy in watched.err
    catalog.stop_run(catalog.begin_run(id, kind="manual").id)
    assert rehost("job", "watch", id, "--json").status == 130


def test_several_jobs_are_started_and_stopped_by_one_command(rehost: Any, source: Source, catalog: Catalog) -> None:
    id = rehost("job", "create", source.id, "--create-only", "--json").json["id"]
    partial = rehost("job", "start", id, "j-none")
    assert partial.status == 3
    assert "Running" in partial.out
    assert "Job.NotFound" in partial.out
    refused = rehost("job", "start", id, "j-none", "--json")
    assert (refused.status, [item["ok"] for item in refused.json["items"]]) == (11, [False, False])
    catalog.set_stage(id, "Syncing")
    assert rehost("job", "stop", id, id, "--json").json["items"][0]["ok"]
    assert rehost("job", "start", id, "j-none", "--watch").status == 2


def test_errors_are_code_sentence_remedy_and_each_fault_on_standard_error(rehost: Any, source: Source) -> None:
    said = rehost("job", "create", source.id, "--name", "1", "--compress-level", "10")
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith("InvalidParameter: ")
    assert "  /name: " in said.err
    assert "  /replication/compress_level: " in said.err
    unknown = rehost("source", "show", "s-none?x=1")
    assert (unknown.status, unknown.err.splitlines()[0].split(":")[0]) == (2, "Source.NotFound")


def test_a_service_that_is_away_says_try_again(rehost: Any, source: Source, orders: Orders) -> None:
    orders.away = True
    said = rehost("job", "create", source.id)
    assert said.status == 75
    assert "Prefect.Unavailable" in said.err


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("source",),
        ("source", "add"),
        ("source", "add", "--path", "/x", "--ssh", "y"),
        ("source", "add", "--path", "/x", "--tag", "y"),
        ("job", "create"),
        ("job", "create", "s-1", "--container", "noslash"),
        ("job", "create", "s-1", "--file", "/none"),
        ("job", "create", "s-1", "--no-image", "--format", "raw"),
        ("job", "create", "s-1", "--every", "1", "--cron", "0 1 * * *"),
        ("image", "show"),
        ("nothing",),
    ],
    ids=str,
)
def test_wrong_words_are_a_usage_error(rehost: Any, words: tuple[str, ...]) -> None:
    said = rehost(*words)
    assert said.status == 2
    assert said.err


def test_the_program_tells_that_no_api_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("REHOST_")},
        "REHOST_HOME": str(tmp_path),
        "REHOST_API_PORT": str(free),
    }
    argv = [sys.executable, "-m", "rehost.cli.main", "job", "list"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 75
    assert done.stderr.startswith("Api.Unreachable: ")
    assert not list(tmp_path.iterdir())


def test_wrong_settings_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehost: Any) -> None:
    monkeypatch.setenv("REHOST_API_PORT", "99999")
    settings.cache_clear()
    try:
        said = rehost("job", "list")
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert said.status == 2
    assert "API_PORT" in said.err


def test_a_key_that_is_wrong_says_so(rehost: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REHOST_API_KEYS", "wrong")
    settings.cache_clear()
    try:
        said = rehost("job", "list")
    finally:
        monkeypatch.undo()
        settings.cache_clear()
    assert said.status == 12
    assert "wrong" not in said.err


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8420"),
        ("0.0.0.0", "http://127.0.0.1:8420"),
        ("::", "http://[::1]:8420"),
        ("rehost.lan", "http://rehost.lan:8420"),
    ],
)
def test_the_address_of_the_api_follows_from_where_it_listens(tmp_path: Path, host: str, url: str) -> None:
    assert base_url(Settings(home=tmp_path, api_host=host, api_port=8420)) == url


def test_every_error_code_belongs_to_one_class() -> None:
    codes = [cls.code for cls in error_classes()]
    assert len(codes) == len(set(codes))


def test_a_key_that_is_wrong_and_one_that_may_not_end_alike() -> None:
    assert {exit_code_of(code) for code in ("Unauthenticated", "Forbidden")} == {12}

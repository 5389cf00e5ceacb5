"""PostgreSQL stopped, killed, paused and cut off while the catalog works with it: nothing is done twice or by half."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

import api.app
from api.app import create_app
from rehost.catalog import database as database_module
from rehost.catalog.catalog import Catalog
from rehost.catalog.database import Database, one_at_a_time
from rehost.catalog.idempotency import Answer
from rehost.catalog.job import JobSpec
from rehost.catalog.postgresql import postgresql_engine
from rehost.catalog.records import Figures, Job
from rehost.catalog.states import JobStatus, RunStatus
from rehost.errors import CatalogAway, CatalogUrlInvalid, RehostError
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tests.support.postgres import CutLine, PostgreSQL

_INVENTORY = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
_PATIENCE = 60.0


@pytest.fixture
def database(postgresql_server: PostgreSQL) -> Iterator[str]:
    """The name of an empty database. The server runs again at the end."""
    with postgresql_server.database() as name:
        yield name
        if not postgresql_server.running:
            postgresql_server.start()


@pytest.fixture
def line(postgresql_server: PostgreSQL) -> Iterator[CutLine]:
    line = CutLine(postgresql_server.port)
    yield line
    line.close()


def opened(tmp_path: Path, url: str, patience: float = _PATIENCE) -> Catalog:
    return Catalog.open(Settings(home=tmp_path, database_url=url), patience=patience)


def new_job(catalog: Catalog, **fields: object) -> Job:
    source = catalog.add_source(PathConnection(root="/srv/web1"), _INVENTORY)
    return catalog.create_job(JobSpec.model_validate({"source_id": source.id, "region_id": "local", **fields}))


@contextmanager
def meanwhile(do: Callable[[], None]) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=do)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(120)


@pytest.mark.parametrize("end", [PostgreSQL.stop, PostgreSQL.kill])
def test_a_run_goes_on_after_an_outage_of_the_database(
    postgresql_server: PostgreSQL, database: str, tmp_path: Path, end: Callable[[PostgreSQL], None]
) -> None:
    with opened(tmp_path, postgresql_server.url(database)) as catalog:
        job = new_job(catalog, verification={"enabled": False})
        run = catalog.claim_run(job.id, flow_run_id="flow-1")
        back = threading.Event()

        def outage() -> None:
            end(postgresql_server)
            time.sleep(2)
            postgresql_server.start()
            back.set()

        done = 0
        with meanwhile(outage):
            # Before, in and after the outage; each call is a transaction of its own.
            while not back.is_set() or done < 100:
                catalog.set_stage(job.id, "Syncing")
                catalog.bandwidth_limit(job.id, job.created_at)
                catalog.record_snapshot(run.id, "n-one", Figures(files_total=done))
                done += 1
        catalog.add_image(job.id, run.id, _INVENTORY, id="m-" + "a" * 20, kind="disk", name="web")
        assert catalog.finish_run(run.id).status is RunStatus.SUCCEEDED
        assert catalog.job(job.id).status is JobStatus.FINISHED


def test_a_process_that_starts_in_an_outage_waits_for_its_end(
    postgresql_server: PostgreSQL, database: str, tmp_path: Path
) -> None:
    postgresql_server.stop()
    back = threading.Timer(1, postgresql_server.start)
    with meanwhile(back.run):
        with opened(tmp_path, postgresql_server.url(database)) as catalog:
            catalog.ping()


def test_patience_ends(postgresql_server: PostgreSQL, database: str, tmp_path: Path) -> None:
    with opened(tmp_path, postgresql_server.url(database), patience=0.3) as catalog:
        postgresql_server.stop()
        for ask in (lambda: catalog.job("j-none"), catalog.ping):
            with pytest.raises(CatalogAway) as refused:
                ask()
            assert postgresql_server.password not in str(refused.value)
        postgresql_server.start()
        catalog.ping()


def test_the_api_answers_503_while_the_database_is_away(
    postgresql_server: PostgreSQL, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.app, "_CATALOG_PATIENCE_SECONDS", 0.3)
    settings = Settings(home=tmp_path, database_url=postgresql_server.url(database))
    with TestClient(create_app(settings), base_url="http://127.0.0.1") as client:
        assert client.get("/v1/jobs").status_code == 200
        postgresql_server.stop()
        for path in ("/v1/jobs", "/healthz"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "Catalog.Unavailable")
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.json()["retryable"]
        postgresql_server.start()
        assert client.get("/v1/jobs").json()["total"] == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_broke_at_its_commit_is_done_once(
    postgresql_server: PostgreSQL, database: str, line: CutLine, tmp_path: Path, when: str
) -> None:
    with (
        opened(tmp_path, postgresql_server.url(database)) as looking,
        opened(tmp_path, postgresql_server.url(database, port=line.port)) as catalog,
    ):
        line.cut(when)
        job = new_job(catalog, incremental={"interval_hours": 1})  # the source's commit
        assert looking.sources().total == 1
        line.cut(when)
        with pytest.raises(RehostError, match="has the unfinished job"):
            new_job_of = JobSpec.model_validate({"source_id": job.source_id, "region_id": "local"})
            catalog.create_job(new_job_of)  # no commit: the line stays armed
        run = catalog.begin_run(job.id, kind="manual")
        assert looking.runs(job.id).items == (run,)
        line.cut(when)
        assert catalog.withdraw_run(run.id), "once more it would not be found"
        assert looking.runs(job.id).total == 0
        line.cut(when)
        assert catalog.reserve_key("key", "f") is None, "once more it would be busy"
        line.cut(when)
        catalog.settle_key("key", Answer(201, {}, None))
        line.cut(when)
        assert catalog.take_timed(job.id) is None
        assert line.cuts == 6


def test_a_timed_start_is_taken_by_the_one_whose_commit_was_cut(
    postgresql_server: PostgreSQL, database: str, line: CutLine, tmp_path: Path
) -> None:
    with opened(tmp_path, postgresql_server.url(database, port=line.port)) as catalog:
        job = new_job(catalog)
        for when in ("before", "after"):
            catalog.timed(job.id, "flow-1")
            line.cut(when)
            assert catalog.take_timed(job.id) == "flow-1", "and not None, as a second try would see it"
        assert line.cuts == 2


def test_a_server_that_says_nothing_counts_as_away(
    postgresql_server: PostgreSQL, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = functools.partial(postgresql_engine, answer_seconds=1.0)
    monkeypatch.setattr(database_module, "postgresql_engine", soon)
    with opened(tmp_path, postgresql_server.url(database)) as catalog:
        job = new_job(catalog)
        postgresql_server.pause()
        try:
            with pytest.raises(CatalogAway):
                catalog.ping()
            timer = threading.Timer(2, postgresql_server.resume)
            timer.start()
            assert catalog.begin_run(job.id, kind="manual").status is RunStatus.PENDING
        finally:
            postgresql_server.resume()
        assert catalog.runs(job.id).total == 1


def test_a_deadlock_is_tried_again(postgresql_server: PostgreSQL, database: str, tmp_path: Path) -> None:
    opened(tmp_path, postgresql_server.url(database)).close()
    shared = Database(postgresql_server.url(database))
    both = threading.Barrier(2)
    done: list[int] = []

    def hold(first: int, second: int) -> None:
        tries = 0

        def transaction() -> None:
            nonlocal tries
            tries += 1
            with shared.write() as session:
                one_at_a_time(session, first)
                if tries == 1:
                    both.wait(30)
                one_at_a_time(session, second)

        shared.patiently(transaction)
        done.append(tries)

    with meanwhile(lambda: hold(1, 2)):
        hold(2, 1)
    shared.close()
    assert sorted(done) == [1, 2]


def test_the_password_comes_from_the_environment_or_a_file_and_is_told_to_nobody(
    postgresql_server: PostgreSQL,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    bare = postgresql_server.url(database, password=False)
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pgpass"))
    with pytest.raises(CatalogAway, match="password authentication failed"):
        opened(tmp_path, bare)
    began = time.monotonic()
    monkeypatch.setenv("PGPASSWORD", "wrong-secret")
    with pytest.raises(CatalogAway, match="password authentication failed") as refused:
        opened(tmp_path, bare)
    assert time.monotonic() - began < _PATIENCE / 2, "a wrong password is no outage"
    monkeypatch.setenv("PGPASSWORD", postgresql_server.password)
    opened(tmp_path, bare).close()
    monkeypatch.delenv("PGPASSWORD")
    file = tmp_path / "pgpass"
    escaped = postgresql_server.password.replace("\\", "\\\\").replace(":", "\\:")
    file.write_text(f"# ours\nelsewhere:*:*:*:no\n127.0.0.1:{postgresql_server.port}:*:rehost:{escaped}\n")
    file.chmod(0o644)
    with pytest.raises(CatalogAway):
        opened(tmp_path, bare, patience=0)  # others may read it: it is not used
    file.chmod(0o600)
    with opened(tmp_path, bare) as catalog:
        with pytest.raises(CatalogAway) as told:
            with catalog._database.read() as session:
                session.scalar(select(func.no_such_function(postgresql_server.password)))
    for text in (str(refused.value), str(told.value), caplog.text):
        assert "secret" not in text
    socket = f"postgresql://rehost@/{database}?host={postgresql_server.folder}"
    file.write_text(f"localhost:5432:*:*:{escaped}\n")
    (postgresql_server.folder / ".s.PGSQL.5432").symlink_to(f".s.PGSQL.{postgresql_server.port}")
    opened(tmp_path, socket).close()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://u:hidden@h/d", "begins with"),
        ("postgresql+psycopg://u:hidden@h/d", "begins with"),
        ("no url, hidden", "not a URL"),
        ("postgresql://h/hidden", "a user, a host and a database"),
        ("postgresql://u:hidden@h/d?sslmode=perhaps", "sslmode"),
        ("postgresql://u:hidden@h/d?sslmode=verify-full&sslrootcert=/none", "sslrootcert"),
        ("postgresql://u:hidden@h/d?host=h2", "folder"),
        ("postgresql://u:hidden@h/d?options=-c+x", "the options are"),
        ("postgresql://u:hidden@h/d?sslmode=require&sslmode=disable", "the options are"),
        ("postgresql://u:hidden@h:port/d", "not a URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_not_repeated(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(CatalogUrlInvalid, match=reason) as refused:
        opened(tmp_path, url)
    assert "hidden" not in str(refused.value)

"""Bandwidth by the hour: which limit counts when, and changes of it on a job that is under way."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rehost.catalog.bandwidth import Bandwidth, limit_at, next_change
from rehost.catalog.catalog import Catalog
from rehost.catalog.database import now
from rehost.catalog.job import JobSpec
from rehost.catalog.records import Job
from rehost.catalog.states import ENDED, JobStatus, RunKind
from rehost.catalog.tables import JobRow
from rehost.cli.bandwidth import _window
from rehost.cli.parsing import UsageError
from rehost.errors import JobInvalidStatus
from rehost.replication.store import Store
from rehost.settings import Settings
from rehost.source.connect import PathConnection
from tasks.run_pass import Pass, source_session
from tests.support.wire import inventory, take

MONDAY = datetime(2026, 5, 4, tzinfo=UTC)
OFFICE = {"days": ["mon", "tue", "wed", "thu", "fri"], "from": "08:00", "to": "18:00", "limit_kbps": 2000}
NIGHT = {"from": "22:00", "to": "06:00", "limit_kbps": 0}


def _bandwidth(*windows: dict[str, Any], limit: int = 500, zone: str = "UTC") -> Bandwidth:
    fields = {"bandwidth_limit_kbps": limit, "bandwidth_calendar": windows, "bandwidth_timezone": zone}
    return Bandwidth.model_validate(fields)


def _at(day: int, hour: int, minute: int = 0, second: int = 0) -> datetime:
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute, seconds=second)


@pytest.mark.parametrize(
    ("moment", "limit"),
    [
        (_at(0, 7, 59, 59), 500),
        (_at(0, 8), 2000),
        (_at(0, 17, 59, 59), 2000),
        (_at(0, 18), 500),
        (_at(5, 12), 500),  # Saturday
        (_at(0, 22), 0),
        (_at(1, 5, 59, 59), 0),
        (_at(1, 6), 500),
        (_at(6, 23), 0),  # Sunday night
        (_at(7, 0), 0),  # goes on into Monday
        (_at(7, 6), 500),
    ],
)
def test_a_window_counts_from_its_beginning_to_its_end(moment: datetime, limit: int) -> None:
    assert limit_at(_bandwidth(OFFICE, NIGHT), moment) == limit


def test_a_calendar_goes_by_the_clock_of_its_zone_also_when_that_is_changed() -> None:
    berlin = _bandwidth({"from": "08:00", "to": "18:00", "limit_kbps": 2000}, zone="Europe/Berlin")
    winter, summer = datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 7, 6, tzinfo=UTC)
    assert [limit_at(berlin, winter + timedelta(hours=hour)) for hour in (6, 7, 16, 17)] == [500, 2000, 2000, 500]
    assert [limit_at(berlin, summer + timedelta(hours=hour)) for hour in (5, 6, 15, 16)] == [500, 2000, 2000, 500]


def test_the_next_change_is_the_first_moment_with_another_limit() -> None:
    bandwidth = _bandwidth(OFFICE, NIGHT)
    assert next_change(bandwidth, _at(0, 7)) == _at(0, 8)
    assert next_change(bandwidth, _at(0, 8)) == _at(0, 18)
    assert next_change(bandwidth, _at(4, 18)) == _at(4, 22)
    assert next_change(bandwidth, _at(6, 23)) == _at(7, 6)
    assert next_change(_bandwidth(), _at(0, 7)) is None
    same = {"from": "08:00", "to": "18:00", "limit_kbps": 500}
    assert next_change(_bandwidth(same), _at(0, 7)) is None
    whole = {"days": ["sat", "sun"], "from": "00:00", "to": "24:00", "limit_kbps": 0}
    assert next_change(_bandwidth(whole), _at(5, 1)) == _at(7, 0)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Pacific/Apia", "Asia/Kathmandu"])
def test_the_next_change_agrees_with_the_limit_minute_by_minute(zone: str) -> None:
    bandwidth = _bandwidth(OFFICE, NIGHT, {"days": ["sat"], "from": "06:00", "to": "07:30", "limit_kbps": 7}, zone=zone)
    moment = datetime(2026, 5, 3, 21, 17, tzinfo=UTC)
    seen = moment
    for _ in range(12):
        told = next_change(bandwidth, seen)
        assert told is not None
        before = limit_at(bandwidth, seen)
        while limit_at(bandwidth, seen) == before:
            seen = seen.replace(second=0) + timedelta(minutes=1)
        assert told == seen


@pytest.mark.parametrize(
    "windows",
    [
        (OFFICE, {"days": ["fri"], "from": "17:59", "to": "19:00", "limit_kbps": 1}),
        ({"from": "22:00", "to": "08:01", "limit_kbps": 1}, OFFICE),
        ({"days": ["sun"], "from": "22:00", "to": "06:00", "limit_kbps": 1}, {**OFFICE, "from": "05:00"}),
        (OFFICE, OFFICE),
    ],
)
def test_windows_that_overlap_are_refused(windows: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(ValidationError, match="has two windows for"):
        _bandwidth(*windows)


@pytest.mark.parametrize(
    "fields",
    [
        {"from": "8:00"},
        {"from": "24:00"},
        {"to": "24:01"},
        {"from": "18:00"},
        {"days": []},
        {"days": ["mon", "mon"]},
        {"days": ["monday"]},
        {"limit_kbps": -1},
        {"limit_kbps": "5"},
        {"speed": 1},
    ],
)
def test_a_wrong_window_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        _bandwidth({**OFFICE, **fields})


def test_windows_on_the_command_line() -> None:
    assert _window("mon-fri 08:00-18:00 2000") == OFFICE
    assert _window("22:00-06:00 0") == NIGHT
    assert _window("sat,sun-mon 00:00-24:00 1")["days"] == ["sat", "sun", "mon"]
    for text in ("08:00-18:00", "someday 08:00-18:00 1", "08:00 18:00 1", "08:00-18:00 fast"):
        with pytest.raises(UsageError):
            _window(text)


# --- a job --------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REHOST_HOME", str(tmp_path / "home"))
    from rehost.settings import settings

    settings.cache_clear()
    return tmp_path / "home"


def _job(catalog: Catalog, tree: Path, **replication: Any) -> str:
    source = catalog.add_source(PathConnection(root=str(tree)), inventory(), name="web1")
    spec = {"source_id": source.id, "region_id": "local", "replication": replication}
    return catalog.create_job(JobSpec.model_validate(spec)).id


def _change(catalog: Catalog, id: str, **replication: Any) -> Job:
    return catalog.change_job(id, {"replication": replication}, now()).after


def test_a_change_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    with Catalog.open(Settings(home=tmp_path)) as catalog:
        id = _job(catalog, tmp_path, bandwidth_limit_kbps=5, compress_level=3, bandwidth_timezone="Europe/Berlin")
        job = _change(catalog, id, bandwidth_calendar=[OFFICE])
        assert job == catalog.job(id)
        assert (job.replication.bandwidth_limit_kbps, job.replication.compress_level) == (5, 3)
        assert job.replication.bandwidth_timezone == "Europe/Berlin"
        assert catalog.bandwidth_limit(id, _at(0, 6)) == 2000  # 08:00 in Berlin
        assert job.model_dump(mode="json")["replication"]["bandwidth_calendar"] == [OFFICE]
        _change(catalog, id, bandwidth_calendar=[], bandwidth_limit_kbps=9)
        assert catalog.bandwidth_limit(id, _at(0, 6)) == 9


@pytest.mark.parametrize("status", list(JobStatus))
def test_a_job_that_has_not_ended_can_be_changed(tmp_path: Path, status: JobStatus) -> None:
    with Catalog.open(Settings(home=tmp_path)) as catalog:
        id = _job(catalog, tmp_path)
        with catalog._database.write() as session:
            session.get_one(JobRow, id).status = status
        if status in ENDED:
            with pytest.raises(JobInvalidStatus):
                _change(catalog, id, bandwidth_limit_kbps=1)
        else:
            assert _change(catalog, id, bandwidth_limit_kbps=1).replication.bandwidth_limit_kbps == 1


def test_a_transfer_under_way_follows_a_change(home: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    size = 40_000_000
    with (tree / "file").open("wb") as file:
        for number in range(size // 1_000_000):
            file.write(number.to_bytes(4, "big") * 250_000)
    with Catalog.open(Settings(home=home)) as catalog, Store.open(home / "store") as store:
        id = _job(catalog, tree, bandwidth_limit_kbps=300)  # for two minutes
        run = catalog.begin_run(id, kind=RunKind.MANUAL)
        this = Pass(run, catalog.job(id), catalog.source(run.source_id), home)
        arrived: list[int] = []
        before: list[int] = []

        def free() -> None:
            while not arrived or arrived[-1] < 600_000:
                time.sleep(0.01)
            before.append(arrived[-1])
            _change(catalog, id, bandwidth_limit_kbps=0)

        with source_session(this) as session:
            watcher = threading.Thread(target=free, daemon=True)
            watcher.start()
            begun = time.monotonic()
            done = threading.Event()

            def watch() -> None:
                while not done.wait(0.01):
                    arrived.append(session.bytes_on_wire())

            threading.Thread(target=watch, daemon=True).start()
            try:
                snapshot, _ = take(session, store, tmp_path)
            finally:
                done.set()
            seconds = time.monotonic() - begun
    assert before and before[0] < size // 2 and snapshot.bytes_total == size
    assert seconds < size / 300_000 / 2  # it did not go on at the pace that it began with

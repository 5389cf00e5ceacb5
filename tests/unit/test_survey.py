"""A walk before a copy: its sums against the tree that was made, against a snapshot, and what it remarks."""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rehost.catalog.bandwidth import Bandwidth, seconds_for
from rehost.catalog.job import JobSpec
from rehost.catalog.plan_warnings import databases, warnings
from rehost.catalog.records import Source
from rehost.catalog.states import SourceState
from rehost.replication.pass_plan import plan_pass
from rehost.replication.store import Store
from rehost.replication.survey import CACHE_BYTES, Survey, survey, warnings_of
from rehost.replication.survey_counts import Counts, _Excluder
from rehost.source.connect import PathConnection, open_session
from rehost.source.exclude import excluder
from rehost.source.inventory import Inventory, Listener, Volume
from rehost.source.session import Session
from tests.support.wire import inventory, take

OLD = time.time() - 86_400


def _make(tree: Path, files: dict[str, int]) -> None:
    for name, size in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, size)
        os.utime(path, (OLD, OLD))


class _Small:
    """A session whose scan comes in batches of a few rows."""

    def __init__(self, session: Session, rows: int) -> None:
        self._session = session
        self._rows = rows

    def scan(self, volumes: Sequence[Volume], exclude: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in self._session.scan(volumes, exclude):
            for start in range(0, batch.num_rows, self._rows):
                yield batch.slice(start, self._rows)


def _survey(
    tree: Path,
    exclude: Sequence[str] = (),
    parent: tuple[str, Path] | None = None,
    used_bytes: int = 0,
    rows: int = 4096,
    seconds: float = 60,
    measure: bool = False,
) -> Survey:
    facts = inventory().model_copy(
        update={"volumes": (Volume(mount_point="/", filesystem="ext4", size_bytes=0, used_bytes=used_bytes),)}
    )
    with open_session(PathConnection(root=str(tree))) as session:
        some = session if measure else _Small(session, rows)
        return survey(some, facts, exclude, parent=parent, seconds=seconds, measure=measure)  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [1, 3, 4096])
def test_the_sums_are_those_of_the_tree(tmp_path: Path, rows: int) -> None:
    _make(tmp_path, {"a/one": 1000, "a-b": 20, "a/b/two": 300, "cache/x.tmp": 4000, "cache/y": 5, "z.tmp": 60_000})
    os.link(tmp_path / "a/one", tmp_path / "a/twin")
    (tmp_path / "link").symlink_to("a")
    found = _survey(tmp_path, ["/cache", "*.tmp", "/nothing"], rows=rows)
    (volume,) = found.volumes
    assert (volume.names, volume.files, volume.bytes) == (8, 4, 1320)
    assert (found.files_to_read, found.bytes_to_read, found.complete) == (4, 1320, True)
    assert [(item.what, item.names, item.bytes) for item in found.left_out] == [
        ("/cache", 3, 4005),
        ("*.tmp", 1, 60_000),
        ("/nothing", 0, 0),
    ]


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_only_what_changed_since_the_snapshot_is_to_be_read(tmp_path: Path, rows: int) -> None:
    tree = tmp_path / "tree"
    _make(tree, {f"d{number % 5}/f{number}": number for number in range(100)})
    with Store.open(tmp_path / "store") as store:
        with open_session(PathConnection(root=str(tree))) as session:
            snapshot, _ = take(session, store, tmp_path)
        (tree / "d0/f0").unlink()
        (tree / "d1/f11").write_bytes(b"x" * 11)
        (tree / "d2/new").write_bytes(b"new")
        (tree / "a").write_bytes(b"before")
        (tree / "z").write_bytes(b"after all")
        found = _survey(tree, parent=(snapshot.id, store.table_path(snapshot.id, "files")), rows=rows)
    assert (found.parent_id, found.files_to_read) == (snapshot.id, 4)
    assert found.bytes_to_read == 11 + 3 + 6 + 9
    assert found.volumes[0].files == 102


def test_what_is_below_a_directory_that_is_left_out_goes_with_it() -> None:
    draw = random.Random(7)
    for _ in range(300):
        paths = sorted({"/".join(draw.choices(["a", "a-b", "a0", "b"], k=draw.randint(1, 4))) for _ in range(12)})
        known = set(paths)
        directories = [any(other.startswith(f"{path}/") for other in known) or draw.random() < 0.2 for path in paths]
        patterns = draw.sample(["a", "/a", "a-b/", "/b/a", "a/**", "*0", "/a/a-b"], k=2)
        out = excluder(patterns)
        is_directory = dict(zip(paths, directories, strict=True))

        expected = []
        for path, directory in is_directory.items():
            above = [path[:at] for at, letter in enumerate(path) if letter == "/" and path[:at] in known]
            expected.append(out(path.encode(), directory) or any(out(parent.encode(), True) for parent in above))
        rows = pa.array([path.encode() for path in paths], pa.binary())
        found = _Excluder(patterns).patterns(rows, np.array(directories)) >= 0
        assert found.tolist() == expected, (paths, patterns)


def test_caches_swap_files_and_hollow_files_are_remarked(tmp_path: Path) -> None:
    files = {"var/cache/apt/a": CACHE_BYTES, "home/me/.cache/b": CACHE_BYTES + 1, "home/me/cache": CACHE_BYTES}
    _make(tmp_path, {**files, "var/log/journal/small": 1000, "swapfile": 32 << 20, "data/hollow": 5 << 30})
    found = _survey(tmp_path, used_bytes=2 << 30)
    assert [(item.kind, item.path, item.bytes) for item in found.remarkable] == [
        ("cache", "/home/*/.cache", CACHE_BYTES + 1),
        ("cache", "/var/cache", CACHE_BYTES),
        ("swap", "/swapfile", 32 << 20),
        ("sparse", "/data/hollow", 5 << 30),
    ]
    assert found.bytes_to_read == sum(files.values()) + 1000 + (32 << 20)
    assert len(list(warnings_of(found))) == 4
    assert all(item.kind != "cache" for item in _survey(tmp_path, ["/var/cache", ".cache"]).remarkable)


def test_files_that_changed_a_moment_ago_are_counted_by_directory(tmp_path: Path) -> None:
    _make(tmp_path, {"etc/old": 1, "log/a": 1, "log/b": 1, "spool/c": 1})
    for name in ("log/a", "log/b", "spool/c"):
        os.utime(tmp_path / name)
    found = _survey(tmp_path, rows=2)
    assert found.changing_files == 3
    assert [(busy.path, busy.files) for busy in found.busy_directories] == [("/log", 2), ("/spool", 1)]


def test_a_walk_that_takes_too_long_ends_and_says_where(tmp_path: Path) -> None:
    _make(tmp_path, {f"f{number:03}": 1 for number in range(50)})
    found = _survey(tmp_path, rows=10, seconds=0)
    assert (found.complete, found.reached, found.volumes[0].names) == (False, "/f008", 10)
    assert "/f008" in next(warnings_of(found))


def test_the_rate_is_measured_where_there_is_something_to_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(3 << 20))
    assert _survey(tmp_path, measure=True).rate == "measured"
    (tmp_path / "file").write_bytes(b"little")
    assert _survey(tmp_path, measure=True).rate == "assumed"


def test_memory_does_not_grow_with_the_number_of_files() -> None:
    counts = Counts([Volume(mount_point="/", filesystem="ext4", size_bytes=0, used_bytes=0)], (), None, time.time_ns())
    rows, now = 4096, time.time_ns()
    for number in range(50):
        paths = [b"d%08d/f" % (number * rows + row) for row in range(rows)]
        constant = {"volume": 0, "mode": stat.S_IFREG | 0o644, "size": 1, "mtime_ns": now, "dev": 1, "nlink": 1}
        columns = {name: np.full(rows, value, np.int64) for name, value in constant.items()}
        counts.add(pa.RecordBatch.from_pydict({"path": pa.array(paths, pa.binary()), **columns}))
    assert counts.recent_total == 50 * rows
    assert len(counts.recent) <= 4096
    assert len(counts.samples) <= 8


# --- what the catalog makes of it -----------------------------------------------------------------------------------


def _source(facts: Inventory) -> Source:
    moment = datetime.now(UTC)
    return Source(
        id="s-1",
        name="web1",
        description=None,
        connection=PathConnection(root="/"),
        tags={},
        state=SourceState.AVAILABLE,
        status_info=None,
        inventory=facts,
        created_at=moment,
        discovered_at=moment,
    )


def _warned(spec: dict[str, Any], facts: Inventory) -> list[str]:
    return list(warnings(JobSpec.model_validate(spec), _source(facts), plan_pass(facts, ())))


def test_a_database_without_a_hook_is_warned_of() -> None:
    listener = Listener(protocol="tcp", address="0.0.0.0", port=3306, process="mariadbd")
    units = ("postgresql@15-main.service", "ssh.service")
    facts = inventory().model_copy(update={"listeners": (listener,), "active_services": units, "kernel": "6.1"})
    assert databases(facts) == ("PostgreSQL", "MySQL or MariaDB")
    spec: dict[str, Any] = {"source_id": "s-1", "region_id": "local"}
    told = _warned(spec, facts)
    assert [sentence.split(" runs")[0] for sentence in told] == ["PostgreSQL", "MySQL or MariaDB"]
    assert "while it writes" in _warned({**spec, "consistency": {"method": "live"}}, facts)[0]
    assert _warned({**spec, "hooks": {"pre_snapshot": "pg_backup_start"}}, facts) == []


def test_an_estimate_follows_the_limits_of_the_hours() -> None:
    monday = datetime(2026, 5, 4, 17, 0, tzinfo=UTC)
    window = {"from": "08:00", "to": "18:00", "limit_kbps": 1000}
    office = Bandwidth.model_validate({"bandwidth_calendar": [window]})
    hour = 3600
    assert seconds_for(1_000_000 * 60, 10_000_000, office, monday) == 60
    assert seconds_for(1_000_000 * hour + 10_000_000 * 100, 10_000_000, office, monday) == hour + 100
    assert seconds_for(0, 1, office, monday) == 0
    # A night of fourteen hours, then the limit again.
    night = 1_000_000 * hour + 10_000_000 * 14 * hour
    assert seconds_for(night + 1_000_000, 10_000_000, office, monday) == 15 * hour + 1
    assert seconds_for(10**15, 1, Bandwidth(), monday) is None
    assert seconds_for(10**18, 10**6, office, monday - timedelta(days=1)) is None

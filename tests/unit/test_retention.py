"""Which snapshots go: a rule over records, the catalog's answer, and the store after it."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Figures
from rehost.catalog.retention import Taken, unneeded
from rehost.catalog.states import JobStatus
from rehost.errors import StoreNoSpace
from rehost.ids import new_id
from rehost.replication.store import Store
from rehost.settings import Settings, settings
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tasks import store_care
from tasks.store_care import tidy_store
from tests.support.stores import snapshot
from tests.unit.test_catalog_runs import complete, make_job, put_into, started
from tests.unit.test_store_care import chunks, save


def taken(*runs: bool, kept: int | None = 2, job: str = "j", source: str = "s") -> list[Taken]:
    """Snapshots of a job, oldest first; each tells whether its run succeeded."""
    began = datetime(2026, 1, 1, tzinfo=UTC)
    return [
        Taken(f"{job}{number}", source, job, began + timedelta(hours=number), succeeded, kept)
        for number, succeeded in enumerate(runs)
    ]


def go(*jobs: list[Taken], images: tuple[str, ...] = (), busy: tuple[str, ...] = ()) -> list[str]:
    return unneeded([one for job in jobs for one in job][::-1], in_images=images, busy_sources=busy)


def test_the_newest_stay_counted_from_the_last_success() -> None:
    assert go(taken(True, True, True, True)) == ["j0", "j1"]
    assert go(taken(True, True)) == go([]) == []
    assert go(taken(True, True, True, False, False)) == ["j0"]
    assert go(taken(True, False, True)) == ["j0"]
    assert go(taken(False, False, False)) == []


def test_jobs_are_judged_each_by_its_own_rule() -> None:
    once = taken(True, True, True, kept=None, job="o")
    deleted = taken(True, False, kept=0, job="d")
    assert go(taken(True, True, True), once, deleted) == ["d0", "j0", "d1"]


def test_what_an_image_or_a_run_refers_to_stays() -> None:
    assert go(taken(True, True, True, True), images=("j1",)) == ["j0"]
    assert go(taken(True, True, True), taken(True, True, True, job="k", source="t"), busy=("s",)) == ["k0"]


def test_what_only_old_snapshots_needed_leaves_the_store_once_an_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REHOST_HOME", str(tmp_path))
    settings.cache_clear()
    try:
        _tidied(tmp_path, monkeypatch)
    finally:
        monkeypatch.undo()
        settings.cache_clear()


def _tidied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "store") as store:
        old, kept = save(store, chunks(1, 3)), save(store, chunks(2, 3))
    for pack in (tmp_path / "store" / "packs").iterdir():
        os.utime(pack, (0, 0))
    assert tidy_store() is None  # nothing went
    monkeypatch.setattr(Catalog, "unneeded_snapshots", lambda self: [old.id, snapshot().id])
    done = tidy_store()
    assert done is not None and (done.packs_condemned, done.packs_deleted) == (1, 1)
    with Store.open(tmp_path / "store") as store:
        assert [one.id for one in store.snapshots()] == [kept.id]
    assert tidy_store() is None
    os.utime(store_care._collected(), (0, 0))
    again = tidy_store()
    assert again is not None and again.idle


def test_the_catalog_knows_what_may_go(tmp_path: Path) -> None:
    figures = Figures(files_total=1, files_changed=1, bytes_scanned=1, bytes_new=1, bytes_on_wire=1)
    with Catalog.open(Settings(home=tmp_path)) as catalog:
        facts = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
        source = catalog.add_source(PathConnection(root="/srv/web1"), facts)
        job = make_job(catalog, source, incremental={"interval_hours": 1, "max_images": 1})
        ids = [new_id("n") for _ in range(4)]
        for number, id in enumerate(ids):
            run = started(catalog, job, f"flow-{number}")
            catalog.record_snapshot(run.id, id, figures)
            if number in (1, 3):
                complete(catalog, job, run)  # its image refers to the snapshot
                assert catalog.unneeded_snapshots() == []
                catalog.finish_run(run.id)
            else:
                catalog.fail_run(run.id, StoreNoSpace(path="/"))
        assert catalog.unneeded_snapshots() == [ids[0], ids[2]]
        catalog.forget_snapshot(ids[0])
        assert catalog.unneeded_snapshots() == [ids[2]]
        put_into(catalog, job, JobStatus.DELETING)
        assert catalog.unneeded_snapshots() == [ids[2]]

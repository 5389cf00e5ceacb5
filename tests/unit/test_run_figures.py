"""How far a run is, in the catalog: what is kept of it, who writes it, and that it ends no run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from rehost.catalog.catalog import Catalog
from rehost.catalog.job import JobSpec
from rehost.catalog.records import Figures, Job, Run
from rehost.errors import CatalogAway, RunNotFound
from rehost.run_progress import RunProgress
from rehost.source.connect import PathConnection
from rehost.source.inventory import Inventory
from tasks import reporting

_WAIT_SECONDS = 60.0


@pytest.fixture
def job(catalog: Catalog) -> Job:
    """A job that has not run; an incremental one, so that it can run again."""
    inventory = Inventory(hostname="web1", os_id="debian", architecture="x86_64")
    source = catalog.add_source(PathConnection(root="/srv/web1"), inventory)
    asked = {"verification": {"enabled": False}, "incremental": {"interval_hours": 1}}
    return catalog.create_job(JobSpec.model_validate({"source_id": source.id, "region_id": "local", **asked}))


def begun(catalog: Catalog, job: Job, flow_run_id: str = "flow-1") -> Run:
    catalog.begin_run(job.id, kind="manual")
    return catalog.claim_run(job.id, flow_run_id=flow_run_id)


class Facts(BaseModel):
    """Stands for an image.json."""

    size: int = 1


def figures(job: Job) -> tuple[int | None, int | None, int | None, int | None]:
    return job.eta_seconds, job.bytes_done, job.bytes_total, job.bytes_per_second


def test_bytes_and_time_are_those_of_the_run_under_way(catalog: Catalog, job: Job) -> None:
    run = begun(catalog, job)
    assert figures(catalog.job(job.id)) == (None, None, None, None)
    catalog.set_progress(job.id, 5, 61.6, bytes_done=1 << 40, bytes_total=1 << 41, bytes_per_second=1e9)
    assert figures(catalog.job(job.id)) == (62, 1 << 40, 1 << 41, 10**9)
    catalog.set_progress(job.id, 5, 1e300, bytes_done=1, bytes_total=1 << 70, bytes_per_second=1e300)
    assert figures(catalog.job(job.id)) == (2**31 - 1, 1, 2**63 - 1, 2**63 - 1)
    catalog.stop_run(run.id)
    assert figures(catalog.job(job.id)) == (None, None, None, None)


def test_what_the_stages_took_is_told_by_the_run_and_expected_of_the_next(catalog: Catalog, job: Job) -> None:
    failed = begun(catalog, job)
    catalog.record_stage_seconds(failed.id, {"preflight": 99})
    assert catalog.run(failed.id).files_total is None  # a run whose transfer has not ended
    catalog.stop_run(failed.id)
    assert catalog.stage_seconds(job.id) == {}
    run = begun(catalog, job, "flow-2")
    catalog.record_snapshot(run.id, "n-" + run.id[2:], Figures(files_total=3))
    catalog.record_stage_seconds(run.id, {"preflight": 1.23456, "transfer": 60})
    catalog.add_image(job.id, run.id, Facts(), id="m-" + run.id[2:], kind="disk", name="web1")
    catalog.finish_run(run.id)
    assert catalog.stage_seconds(job.id) == {"preflight": 1.235, "transfer": 60}
    told = catalog.run(run.id)
    assert (told.files_total, told.stage_seconds) == (3, {"preflight": 1.235, "transfer": 60})
    with pytest.raises(RunNotFound):
        catalog.record_stage_seconds("r-none", {})


def test_a_job_s_flow_runs_are_those_of_its_runs(catalog: Catalog, job: Job) -> None:
    assert catalog.flow_runs(job.id) == {}
    run = begun(catalog, job, "flow-7")
    assert catalog.flow_runs(job.id) == catalog.flow_runs(job.id, run.id) == {"flow-7": run.id}
    with pytest.raises(RunNotFound):
        catalog.flow_runs(job.id, "r-of-another")


def test_the_bar_is_written_while_a_stage_says_nothing_and_over_an_outage_of_the_catalog(
    catalog: Catalog, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "_UPDATE_SECONDS", 0.01)
    begun(catalog, job)
    now = [0.0]
    bar = RunProgress({"preflight": 1, "transfer": 9}, clock=lambda: now[0])
    bar.begin("preflight")
    opened: list[bool] = []

    @contextlib.contextmanager
    def open_catalog() -> Iterator[Catalog]:
        opened.append(True)
        if len(opened) < 3:
            raise CatalogAway(reason="a test")
        yield catalog

    def wait_for(percent: int) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while catalog.job(job.id).progress != percent:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    with reporting.telling(bar, job.id, open_catalog):
        now[0] = 1.0
        wait_for(4)  # half of the tenth that the stage has
        bar.finish()
        wait_for(9)
        assert len(opened) == 3
    assert "progress" not in {thread.name for thread in threading.enumerate()}

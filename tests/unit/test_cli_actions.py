"""`rehost job verify`, `cut-over` and `delete` against the API as a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Job, Source
from rehost.errors import BootKernelPanic
from rehost.verification.report import Failure, VerificationReport
from tests.unit.test_catalog_endings import report, waiting
from tests.unit.test_cli import (
    catalog as catalog,
    configured as configured,
    orders as orders,
    rehost as rehost,
    source as source,
)


@pytest.fixture
def job(catalog: Catalog, source: Source) -> Job:
    return waiting(catalog, source)[0]


def while_watched(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, finish: Callable[[], None]) -> threading.Thread:
    """A thread that does that once a watcher has looked at the tests of a job."""
    looked = threading.Event()
    listed = catalog.verifications

    def seen(job_id: str, **place: Any) -> Any:
        page = listed(job_id, **place)
        looked.set()
        return page

    monkeypatch.setattr(catalog, "verifications", seen)

    def work() -> None:
        assert looked.wait(60)
        finish()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize(("firmware", "status"), [(None, 0), ("uefi", 20)])
def test_a_verification_is_watched_to_its_outcome(
    rehost: Any, catalog: Catalog, job: Job, monkeypatch: pytest.MonkeyPatch, firmware: str | None, status: int
) -> None:
    """`firmware` is that by which the image does not start."""

    def finish() -> None:
        for test in catalog.verifications_under_way():
            if test.job_id != job.id:
                continue
            if firmware is not None and firmware in test.subject:
                error = Failure.of(BootKernelPanic(evidence="so it says"))
                ended = VerificationReport(subject=test.subject, status="failed", error=error)
                catalog.end_verification(test.id, ended)
            else:
                catalog.end_verification(test.id, report(test.subject, "succeeded"))

    thread = while_watched(catalog, monkeypatch, finish)
    try:
        said = rehost("job", "verify", job.id, "--watch", "--json")
    finally:
        thread.join(60)
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert said.status == status, said.err
    assert {line["type"] for line in lines[:-1]} == {"verification.progress"}
    assert {line["status"] for line in lines[:2]} == {"pending"}
    assert lines[-1]["type"] == "verification.result"
    tests = lines[-1]["verifications"]
    assert len(tests) == 2, "those of the run itself are not among them"
    assert ("Boot.KernelPanic: web1.qcow2 (uefi)" in said.err) == (status != 0)


def test_a_verification_is_asked_for_and_refused_a_second_time(rehost: Any, job: Job) -> None:
    assert "tested again" in rehost("job", "verify", job.id).out
    again = rehost("job", "verify", job.id)
    assert (again.status, "Verification.UnderWay" in again.err) == (11, True)


def test_a_job_is_cut_over_and_deleted(rehost: Any, catalog: Catalog, job: Job) -> None:
    assert rehost("job", "cut-over", job.id, "--json").json["status"] == "Finished"
    refused = rehost("job", "cut-over", job.id, "--sync")
    assert (refused.status, "Job.InvalidStatus" in refused.err) == (11, True)
    unsure = rehost("job", "delete", job.id)
    assert (unsure.status, "--yes" in unsure.err) == (2, True)
    assert rehost("job", "show", job.id).status == 0
    assert rehost("job", "delete", job.id, "--yes", "--json").json == {"id": job.id, "deleted": True}
    assert "Job.NotFound" in rehost("job", "show", job.id).err
    assert rehost("image", "show", job.image_ids[0]).status == 0


def test_a_job_is_cut_over_after_a_last_run(rehost: Any, catalog: Catalog, job: Job) -> None:
    assert rehost("job", "cut-over", job.id, "--sync", "--json").json["status"] == "Running"
    assert catalog.runs(job.id).items[0].kind == "cut_over"
    assert "Job.InvalidStatus" in rehost("job", "delete", job.id, "--images", "--yes").err


def test_images_go_with_their_job_where_that_is_asked_for(rehost: Any, job: Job) -> None:
    assert rehost("job", "delete", job.id, "--images", "--yes").status == 0
    assert "Image.NotFound" in rehost("image", "show", job.image_ids[0]).err

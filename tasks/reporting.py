"""What a run shows of itself in Prefect while it works and when it is done: progress, reports, pictures.

Artifacts are keyed by job and stage, so that the Artifacts page of Prefect is the job's history. Prefect keeps every
update in its database: at most one in two seconds.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from rehost.catalog.catalog import Catalog
from rehost.errors import RehostError
from rehost.run_progress import Figures, RunProgress

log = logging.getLogger("rehost.tasks")

_UPDATE_SECONDS = 2.0
_LOG_PERCENT = 10  # a line in the log when that much more is done …
_LOG_SECONDS = 30.0  # … and the line before is that old
_PICTURE_BYTES = 2 << 20
_LEAVE_SECONDS = 5.0


class StageProgress:
    """The progress of one stage, as `rehost.progress.Progress` wants it. It moves the run's bar."""

    def __init__(self, job_id: str, stage: str, bar: RunProgress) -> None:
        self._stage = stage
        self._bar = bar
        self._began = self._logged_at = time.monotonic()
        self._updated = 0.0
        self._logged = 0.0
        self._percent = 0.0
        self._bytes = 0
        self._thread = threading.get_ident()
        self._artifact: UUID | None = None
        bar.begin(stage)
        get_run_logger().info("%s: begins", stage)
        with _shown():
            created: Any = create_progress_artifact(
                progress=0.0, key=f"{job_id}-{stage}", description=f"{stage}: not begun"
            )
            self._artifact = created

    def __call__(self, done: int, total: int, note: str = "") -> None:
        self._bar.report(done, total)
        # Prefect's run context belongs to the thread of the task; what others report is told by the next call.
        if threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        complete = 0 < total <= done
        if not complete and now - self._updated < _UPDATE_SECONDS:
            return
        percent = min(100.0, 100.0 * done / total) if total > 0 else 0.0
        self._updated, self._percent, self._bytes = now, max(percent, self._percent), max(done, self._bytes)
        figures = f" {done:,} of {total:,} bytes" if total > 0 else ""
        told = f"{self._stage}:{figures} {note}".rstrip()
        self._show(self._percent, told)
        if not complete and self._percent >= self._logged + _LOG_PERCENT and now - self._logged_at >= _LOG_SECONDS:
            self._logged, self._logged_at = self._percent, now
            get_run_logger().info("%s (%.0f %%)", told, self._percent)

    def finish(self) -> None:
        """The stage is done, whatever was reported."""
        self._bar.finish()
        self._show(100.0, f"{self._stage}: done")
        get_run_logger().info("%s: done after %.1f s", self._stage, time.monotonic() - self._began)

    def _show(self, percent: float, told: str) -> None:
        if self._artifact is not None:
            with _shown():
                update_progress_artifact(self._artifact, progress=percent, description=told)


@contextlib.contextmanager
def telling(
    bar: RunProgress, job_id: str, open_catalog: Callable[[], contextlib.AbstractContextManager[Catalog]]
) -> Iterator[None]:
    """Write the bar into the catalog for the length of a block: every two seconds, where it has changed.

    A thread of its own does it, so that a stage that says nothing for minutes is seen to go on. Where the catalog does
    not answer, the next time will do: a bar is no reason to end a run.
    """
    stop = threading.Event()

    def tell() -> None:
        told: Figures | None = None
        while not stop.is_set():
            with contextlib.suppress(RehostError), open_catalog() as catalog:
                while True:
                    figures = bar.figures()
                    if figures != told:
                        catalog.set_progress(
                            job_id,
                            figures.percent,
                            figures.eta_seconds,
                            bytes_done=figures.bytes_done,
                            bytes_total=figures.bytes_total,
                            bytes_per_second=figures.bytes_per_second,
                        )
                        told = figures
                    if stop.wait(_UPDATE_SECONDS):
                        return
            stop.wait(_UPDATE_SECONDS)

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        stop.set()
        teller.join(_LEAVE_SECONDS)


@contextlib.contextmanager
def _shown() -> Iterator[None]:
    """What is only shown is no reason to end a run: where Prefect does not take it, the log says so."""
    try:
        yield
    except Exception as error:  # httpx, Prefect and SQLAlchemy errors alike
        log.warning("Prefect did not take an artifact: %s", error)


def show_report(job_id: str, name: str, markdown: str) -> None:
    """Keep a report with the job, as Markdown."""
    with _shown():
        create_markdown_artifact(markdown, key=f"{job_id}-{name}", description=f"{name} of this run")


def show_picture(job_id: str, name: str, picture: Path) -> None:
    """Keep a PNG with the job; the picture itself is in the artifact, because Prefect's UI reads no files."""
    content = picture.read_bytes()
    if len(content) > _PICTURE_BYTES:
        return
    address = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    with _shown():
        create_image_artifact(address, key=f"{job_id}-{name}", description=f"the screen of {name}")

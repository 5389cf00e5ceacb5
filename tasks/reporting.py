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

log = logging.getLogger("rehost.tasks")

_UPDATE_SECONDS = 2.0
_LOG_PERCENT = 10  # a line in the log each time that this much more is done
_PICTURE_BYTES = 2 << 20

# Where each stage begins and ends on the one bar from 0 to 100 that a run has.
SHARES: dict[str, tuple[int, int]] = {
    "preflight": (0, 2),
    "snapshot": (2, 8),
    "transfer": (8, 55),
    "build-disk": (55, 70),
    "build-container": (70, 78),
    "verify-bios": (78, 86),
    "verify-uefi": (86, 94),
    "verify-container": (94, 98),
    "publish": (98, 100),
}


class StageProgress:
    """The progress of one stage, as `rehost.progress.Progress` wants it.

    `remember(percent, eta_seconds)` is told of the whole run's percent, and of the seconds that this stage still
    takes at the pace that it had so far.
    """

    def __init__(self, job_id: str, stage: str, remember: Callable[[int, int | None], None]) -> None:
        self._first, self._last = SHARES[stage]
        self._stage = stage
        self._remember = remember
        self._began = time.monotonic()
        self._updated = 0.0
        self._logged = 0
        self._percent = 0.0
        self._thread = threading.get_ident()
        self._artifact: UUID | None = None
        with _shown():
            created: Any = create_progress_artifact(
                progress=0.0, key=f"{job_id}-{stage}", description=f"{stage}: not begun"
            )
            self._artifact = created

    def __call__(self, done: int, total: int, note: str = "") -> None:
        # Prefect's run context belongs to the thread of the task; what others report is told by the next call.
        if threading.get_ident() != self._thread:
            return
        now = time.monotonic()
        complete = 0 < total <= done
        if not complete and now - self._updated < _UPDATE_SECONDS:
            return
        percent = min(100.0, 100.0 * done / total) if total > 0 else 0.0
        self._updated, self._percent = now, max(percent, self._percent)
        figures = f" {done:,} of {total:,} bytes" if total > 0 else ""
        told = f"{self._stage}:{figures} {note}".rstrip()
        self._show(self._percent, told)
        eta = round((now - self._began) * (100 - percent) / percent) if percent > 0 else None
        self._remember(round(self._first + (self._last - self._first) * self._percent / 100), eta)
        if self._percent >= self._logged + _LOG_PERCENT:
            self._logged = int(self._percent) // _LOG_PERCENT * _LOG_PERCENT
            get_run_logger().info("%s (%.0f %%)", told, self._percent)

    def finish(self) -> None:
        """The stage is done, whatever was reported."""
        self._show(100.0, f"{self._stage}: done")
        self._remember(self._last, None)

    def _show(self, percent: float, told: str) -> None:
        if self._artifact is not None:
            with _shown():
                update_progress_artifact(self._artifact, progress=percent, description=told)


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

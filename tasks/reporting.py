"""What a run shows of itself in Prefect while it works and when it is done: progress, reports, pictures.

Artifacts are keyed by job and stage, so that the Artifacts page of Prefect is the job's history. Prefect keeps every
update in its database: at most one in two seconds.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

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
        self._percent = -1.0
        self._thread = threading.get_ident()
        self._artifact: UUID = create_progress_artifact(  # type: ignore[assignment]  # sync here
            progress=0.0, key=f"{job_id}-{stage}", description=f"{stage}: not begun"
        )

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        percent = min(100.0, 100.0 * done / total) if total > 0 else 0.0
        complete = total > 0 and done >= total
        # Prefect's run context belongs to the thread of the task; what others report is told by the next call.
        if threading.get_ident() != self._thread or percent <= self._percent:
            return
        if not complete and now - self._updated < _UPDATE_SECONDS:
            return
        self._percent, self._updated = percent, now
        told = f"{self._stage}: {done:,} of {total:,} bytes {note}".rstrip()
        update_progress_artifact(self._artifact, progress=percent, description=told)
        eta = round((now - self._began) * (100 - percent) / percent) if percent > 0 else None
        self._remember(round(self._first + (self._last - self._first) * percent / 100), eta)
        if percent >= self._logged + _LOG_PERCENT or complete:
            self._logged = int(percent) // _LOG_PERCENT * _LOG_PERCENT
            get_run_logger().info("%s (%.0f %%)", told, percent)

    def finish(self) -> None:
        """The stage is done, whatever was reported."""
        update_progress_artifact(self._artifact, progress=100.0, description=f"{self._stage}: done")
        self._remember(self._last, None)


def show_report(job_id: str, name: str, markdown: str) -> None:
    """Keep a report with the job, as Markdown."""
    create_markdown_artifact(markdown, key=f"{job_id}-{name}", description=f"{name} of this run")


def show_picture(job_id: str, name: str, picture: Path) -> None:
    """Keep a PNG with the job; the picture itself is in the artifact, because Prefect's UI reads no files."""
    content = picture.read_bytes()
    if len(content) > _PICTURE_BYTES:
        return
    address = "data:image/png;base64," + base64.b64encode(content).decode("ascii")
    create_image_artifact(address, key=f"{job_id}-{name}", description=f"the screen of {name}")

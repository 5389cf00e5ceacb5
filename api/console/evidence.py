"""The evidence of verifications, as the pages show it. Only what lies in the folder of evidence is served."""

from __future__ import annotations

from pathlib import Path

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import VerificationRecord
from rehost.errors import RouteNotFound
from rehost.settings import Settings

_LOG_BYTES = 48 * 1024
_PAGE = 50


def verification(catalog: Catalog, job_id: str, id: str) -> VerificationRecord:
    """Raises JobNotFound, RouteNotFound."""
    cursor = None
    while True:
        page = catalog.verifications(job_id, limit=_PAGE, cursor=cursor)
        for found in page.items:
            if found.id == id:
                return found
        cursor = page.next_cursor
        if cursor is None:
            raise RouteNotFound(method="GET", path=f"/jobs/{job_id}/verifications/{id}")


def screenshot(found: VerificationRecord, settings: Settings) -> Path | None:
    """The picture of the screen, where there is one."""
    return _kept(found.evidence.screenshot, settings)


def console_tail(found: VerificationRecord, settings: Settings) -> str | None:
    """The end of what the machine or the container printed."""
    path = _kept(found.evidence.console_log, settings)
    if path is None:
        return None
    with path.open("rb") as stream:
        stream.seek(0, 2)
        length = stream.tell()
        stream.seek(max(0, length - _LOG_BYTES))
        content = stream.read(_LOG_BYTES)
    lines = content.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")
    return "\n".join(lines[1:] if length > _LOG_BYTES else lines)


def _kept(name: str | None, settings: Settings) -> Path | None:
    if name is None:
        return None
    path = Path(name).resolve()
    return path if path.is_relative_to(settings.evidence_path.resolve()) and path.is_file() else None

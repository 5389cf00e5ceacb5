"""The evidence of verifications, as the pages show it. Only what lies in the folder of evidence is served."""

from __future__ import annotations

from pathlib import Path

from rehost.catalog.records import VerificationRecord
from rehost.settings import Settings

_LOG_BYTES = 48 * 1024


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

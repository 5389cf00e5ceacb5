"""One line of a run's log, as a frozen record that is also the JSON of the API."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from rehost.source.inventory import Record


class LogLevel(StrEnum):
    """How much a line matters, least first."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"

    @property
    def number(self) -> int:
        """As Python's logging counts."""
        return 10 * (list(LogLevel).index(self) + 1)


class LogEntry(Record):
    """What was said at one moment. Control characters of the message are written as escapes."""

    id: str
    time: datetime
    level: LogLevel
    run_id: str  # the run, or the verification that was asked for by itself
    stage: str | None  # None: what was said between the stages
    message: str

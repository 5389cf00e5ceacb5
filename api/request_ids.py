"""The id of a request: in the headers of its answer, in its problem, and in every line that is logged for it."""

from __future__ import annotations

import logging
import re
import secrets
from contextvars import ContextVar

HEADER = "X-Request-Id"
_SANE = re.compile(r"[A-Za-z0-9._-]{1,128}")

_present: ContextVar[str] = ContextVar("request_id", default="-")


def request_id() -> str:
    """The id of the request that is being answered; `-` outside of one."""
    return _present.get()


def begin_request(given: str | None) -> str:
    """The id of a request from here on: the caller's own where it is a plain word, else a new one."""
    chosen = given if given is not None and _SANE.fullmatch(given) else secrets.token_hex(8)
    _present.set(chosen)
    return chosen


class RequestIdFilter(logging.Filter):
    """Gives each record the id of the request that it was logged for."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id()
        return True


class LineFormatter(logging.Formatter):
    """One record, one line: what a caller sent cannot begin a line of its own. A traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name that logging calls
        return "".join(
            c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().formatMessage(record)
        )


LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "filters": {"request_id": {"()": RequestIdFilter}},
    "formatters": {
        "line": {
            "()": LineFormatter,
            "format": "%(asctime)s %(levelname)s %(name)s request_id=%(request_id)s %(message)s",
        }
    },
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "stream": "ext://sys.stderr",
            "filters": ["request_id"],
            "formatter": "line",
        }
    },
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {
        "api": {"level": "INFO"},
        "rehost": {"level": "INFO"},
        "uvicorn": {"level": "INFO"},
    },
}

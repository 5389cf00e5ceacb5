"""The log of a run as a story: what Prefect says of its own machinery is for those who ask for debug lines.

Prefect tells each of our expected errors once more, at times with a traceback through its engine; the flow has told it
with its code and its remedy. An error that nobody expected keeps its traceback.
"""

from __future__ import annotations

import logging
import re

from prefect.exceptions import FailedRun

from rehost.errors import RehostError

_MACHINERY = re.compile(
    r"Finished in state |Running hook |Hook '.*' finished running|Beginning subflow run |Engine execution exited "
)
_LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def tell_a_story() -> None:
    """From now on, in this process."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_demoted)  # a second time adds nothing


def _demoted(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    expected = isinstance(error, RehostError | FailedRun)
    if expected:
        record.exc_info, record.exc_text = None, None
    if _MACHINERY.match(record.getMessage()) and (error is None or expected):
        record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return True

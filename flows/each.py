"""Housekeeping in parts that do not depend on each other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from rehost.errors import CatalogAway, OrchestrationAway

log = logging.getLogger(__name__)


def each(*parts: Callable[[], Any]) -> list[Any]:
    """Do every part, also after one that failed; what each of them gives.

    Then the first failure is raised, which makes the flow run Failed; but for OrchestrationAway: what Prefect was
    needed for is done the next time, and 0 stands for it. Without the catalog nothing can be done: CatalogAway is
    raised at once.
    """
    given: list[Any] = []
    failure: Exception | None = None
    for part in parts:
        try:
            given.append(part())
        except CatalogAway:
            raise
        except OrchestrationAway as error:
            log.warning("%s", error)
            given.append(0)
        except Exception as error:
            log.exception("a part of housekeeping failed")
            failure = failure or error
    if failure is not None:
        raise failure
    return given

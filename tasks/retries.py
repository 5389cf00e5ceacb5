"""How a stage is tried again: only where its error says that a retry can help."""

from __future__ import annotations

from typing import Any, TypedDict

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from rehost.errors import RehostError


def can_help(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether the error of this state is one that may go away by itself."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, RehostError) and error.retryable


class StageOptions(TypedDict):
    """What every stage's task has in common."""

    retries: int
    retry_delay_seconds: list[float]
    retry_condition_fn: Any
    cache_policy: Any
    persist_result: bool


_TRIES_OF_A_BOOT = 1  # again: each may take its whole time limit

STAGE: StageOptions = {
    "retries": 3,
    "retry_delay_seconds": [2, 5, 15],
    "retry_condition_fn": can_help,
    # A stage is asked for its effect, and goes on from what is there: its return value must not stand for it.
    "cache_policy": NO_CACHE,
    "persist_result": False,
}

TRIAL: StageOptions = {**STAGE, "retries": _TRIES_OF_A_BOOT, "retry_delay_seconds": [5]}

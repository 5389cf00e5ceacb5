"""Whether the services that a request leans on are there, each asked by itself."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Literal

import anyio
import anyio.to_thread
from pydantic import BaseModel

from api.dependencies import Orchestration
from rehost.catalog.catalog import Catalog
from rehost.errors import RehostError
from rehost.replication.open_store import open_place
from rehost.settings import Settings

CHECK_SECONDS = 10.0
_STORE_LOOKS = threading.BoundedSemaphore(8)
_PROBE = "packs/readiness"  # a name that no store gives


class Check(BaseModel):
    """One service."""

    name: Literal["catalog", "prefect", "worker", "store"]
    state: Literal["ok", "away"]
    detail: str


class Readiness(BaseModel):
    """Whether jobs can run, and what is missing where they cannot."""

    status: Literal["ok", "away"]
    checks: list[Check]


class _NotReady(Exception):
    """The sentence is its argument."""


async def readiness(catalog: Catalog, orchestration: Orchestration, settings: Settings) -> Readiness:
    """Ask all services, at once and each with a time limit."""
    found: dict[str, list[Check]] = {}

    async def ask(name: str, question: Callable[[], Coroutine[Any, Any, list[Check]]]) -> None:
        found[name] = await question()

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "catalog", functools.partial(_one, "catalog", _in_thread(catalog.ping)))
        group.start_soon(ask, "prefect", functools.partial(_prefect, orchestration))
        group.start_soon(ask, "store", functools.partial(_one, "store", _in_thread(_look_at_store, settings)))
    checks = [*found["catalog"], *found["prefect"], *found["store"]]
    return Readiness(status="ok" if all(check.state == "ok" for check in checks) else "away", checks=checks)


def _in_thread(function: Callable[..., object], *arguments: Any) -> Callable[[], Coroutine[Any, Any, object]]:
    return functools.partial(anyio.to_thread.run_sync, functools.partial(function, *arguments), abandon_on_cancel=True)


async def _one(name: Any, question: Callable[[], Coroutine[Any, Any, object]]) -> list[Check]:
    try:
        with anyio.fail_after(CHECK_SECONDS):
            await question()
    except TimeoutError:
        return [Check(name=name, state="away", detail=f"no answer within {CHECK_SECONDS:.0f} seconds")]
    except RehostError as error:
        return [Check(name=name, state="away", detail=error.code)]  # its sentence may name what is nobody's business
    except _NotReady as reason:
        return [Check(name=name, state="away", detail=str(reason))]
    return [Check(name=name, state="ok", detail="answers")]


async def _prefect(orchestration: Orchestration) -> list[Check]:
    online = 0

    async def count() -> None:
        nonlocal online
        online = await orchestration.workers_online()

    [prefect] = await _one("prefect", count)
    if prefect.state != "ok":
        return [prefect, Check(name="worker", state="away", detail="Prefect does not tell")]
    if not online:
        return [prefect, Check(name="worker", state="away", detail="no worker is online")]
    return [prefect, Check(name="worker", state="ok", detail=f"{online} online")]


def _look_at_store(settings: Settings) -> None:
    # A folder on a server that hangs keeps the thread that looks at it; whoever asks, these are all that there are.
    if not _STORE_LOOKS.acquire(blocking=False):
        raise _NotReady("the store has not answered those who asked before")
    try:
        _look(settings)
    finally:
        _STORE_LOOKS.release()


def _look(settings: Settings) -> None:
    with open_place(settings) as place:
        try:
            place.size(_PROBE)
            if settings.store_url is None or "://" not in settings.store_url:
                _check_folder(place.shown)
        except OSError as error:
            raise _NotReady(f"the store does not answer ({type(error).__name__})") from error


def _check_folder(shown: str) -> None:
    if not os.access(shown, os.W_OK | os.X_OK):
        raise _NotReady("the store cannot be written")
    if shutil.disk_usage(shown).free == 0:
        raise _NotReady("the store's disk is full")

"""What the routes need: the catalog, the settings, the orchestration, the pages, and no parameter that is unknown."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol, TypeVar, cast

import anyio.from_thread
from fastapi import Depends, Query, Request
from fastapi.dependencies.models import Dependant

from rehost.catalog.catalog import Catalog
from rehost.catalog.database import now
from rehost.catalog.faults import Fault, raise_faults
from rehost.catalog.log_entries import LogEntry, LogLevel
from rehost.catalog.paging import DEFAULT_LIMIT, MAX_LIMIT
from rehost.catalog.records import Page
from rehost.settings import Settings

Result = TypeVar("Result")


class Orchestration(Protocol):
    """What the API asks of the flows; the module flows.orchestration is one."""

    async def workers_online(self) -> int: ...

    async def start_run(
        self,
        job_id: str,
        *,
        job_name: str,
        source_name: str,
        kind: Literal["manual", "schedule", "cut_over"],
        at: datetime | None = None,
        work_queue: str = ...,
    ) -> str: ...

    async def start_verification(
        self,
        job_id: str,
        *,
        job_name: str,
        source_name: str,
        verification_ids: Sequence[str],
        work_queue: str = ...,
    ) -> str: ...

    async def start_retirement(self, job_id: str, *, job_name: str, source_name: str, work_queue: str = ...) -> str: ...

    async def cancel_run(self, flow_run_id: str) -> None: ...

    async def schedule_job(
        self,
        job_id: str,
        *,
        job_name: str,
        source_name: str,
        since: datetime,
        interval_hours: int | None = None,
        cron: str | None = None,
        timezone: str | None = None,
        work_queue: str = ...,
    ) -> None: ...

    async def unschedule_job(self, job_id: str) -> None: ...

    async def read_logs(
        self,
        flow_runs: dict[str, str],
        *,
        level: LogLevel,
        order: Literal["newest", "oldest"],
        limit: int,
        cursor: str | None,
    ) -> Page[LogEntry]: ...


def get_settings(request: Request) -> Settings:
    return cast(Settings, request.app.state.settings)


def get_catalog(request: Request) -> Catalog:
    return cast(Catalog, request.app.state.catalog)


def get_moment() -> datetime:
    """The time by which a request is judged; a dependency, so that tests can say what it is."""
    return now()


def get_orchestration() -> Orchestration:
    """The flows' face. Imported when it is first needed: Prefect takes seconds to import."""
    from flows import orchestration

    return orchestration


def await_here(function: Callable[..., Coroutine[Any, Any, Result]], *args: Any, **named: Any) -> Result:
    """Await something of the event loop from a route that runs in a thread."""
    return anyio.from_thread.run(functools.partial(function, *args, **named))


@dataclass(frozen=True)
class Place:
    """Which piece of a list is asked for."""

    limit: int
    cursor: str | None


def get_place(
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
    cursor: Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before")] = None,
) -> Place:
    return Place(limit, cursor)


def refuse_unknown_parameters(request: Request) -> None:
    """Raises InvalidParameter for query parameters that the route does not have, and for a NUL in one that it has."""
    known = set(_query_names(request.scope["route"].dependant))
    unknown = dict.fromkeys(name for name in request.query_params if name not in known)
    raise_faults([*(Fault(f"?{name}", "is no parameter of this request") for name in unknown), *_nuls(request, known)])


def refuse_nul(request: Request) -> None:
    """Raises InvalidParameter for a NUL in a query parameter."""
    raise_faults(_nuls(request, set(request.query_params)))


def _nuls(request: Request, known: Collection[str]) -> list[Fault]:
    names = (name for name, value in request.query_params.multi_items() if name in known and "\0" in value)
    return [Fault(f"?{name}", "has a NUL") for name in dict.fromkeys(names)]  # PostgreSQL has no such text


def _query_names(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        yield field.alias
    for inner in dependant.dependencies:
        yield from _query_names(inner)


TheSettings = Annotated[Settings, Depends(get_settings)]
TheCatalog = Annotated[Catalog, Depends(get_catalog)]
TheMoment = Annotated[datetime, Depends(get_moment)]
TheOrchestration = Annotated[Orchestration, Depends(get_orchestration)]
ThePlace = Annotated[Place, Depends(get_place)]

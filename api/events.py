"""Jobs followed by many at once: one look at the catalog a second serves everybody.

What is followed is a state, not a history: whoever is slow misses states in between, never the present one. The id of
an event is made of what it shows, so that it stands over a restart of the API: who comes back with the id of the state
that still is hears nothing until it changes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Job
from rehost.catalog.watching import goes_on, shown
from rehost.errors import CatalogAway, StreamsTooMany

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
ALIVE_SECONDS = 15.0
MAX_STREAMS = 200
_READERS = 2  # threads that look into the catalog, so that the other requests have theirs
_RETRY_MS = 2000  # how long a browser waits before it comes back


@dataclass
class _Followed:
    """A job that somebody follows."""

    job: Job | None  # None: it is gone
    look: int  # the number of the look that saw it so
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # a new one at each change
    followers: int = 0


class Hub:
    """All who follow a job. It belongs to one event loop."""

    def __init__(self, catalog: Catalog, *, look_seconds: float = LOOK_SECONDS) -> None:
        self._catalog = catalog
        self._look_seconds = look_seconds
        self._followed: dict[str, _Followed] = {}
        self._streams = 0
        self._looking: asyncio.Task[None] | None = None
        self._readers = anyio.CapacityLimiter(_READERS)
        self._closed = asyncio.Event()
        self._looks = itertools.count()

    def close(self) -> None:
        """Every stream ends now; whoever follows comes back to the next API."""
        self._closed.set()

    async def aclose(self) -> None:
        """Nobody looks any more."""
        self.close()
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def stream(self, job_id: str, last_event_id: str | None) -> AsyncIterator[bytes] | None:
        """The events of a job until it rests, as they go over the wire; None: it rests, and the follower knows.

        Raises JobNotFound, CatalogAway, StreamsTooMany: before anything is sent.
        """
        if self._streams >= MAX_STREAMS:
            raise StreamsTooMany(limit=MAX_STREAMS)
        look = next(self._looks)
        job = await anyio.to_thread.run_sync(self._catalog.job, job_id, limiter=self._readers)
        if not _goes_on(job) and last_event_id == _id_of(_result(job)):
            return None
        return self._events(job, look, last_event_id)

    async def _events(self, job: Job, look: int, last_event_id: str | None) -> AsyncIterator[bytes]:
        if self._streams >= MAX_STREAMS:  # several may have passed the first check at once
            raise StreamsTooMany(limit=MAX_STREAMS)
        self._streams += 1
        followed = self._followed.setdefault(job.id, _Followed(job, look))
        followed.followers += 1
        self._learn(job.id, job, look)
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._keep_looking())
            yield f"retry: {_RETRY_MS}\n\n".encode()
            async for event in self._of(job.id, followed, last_event_id):
                yield event
        finally:
            self._streams -= 1
            followed.followers -= 1
            if not followed.followers:
                del self._followed[job.id]

    async def _of(self, job_id: str, followed: _Followed, last: str | None) -> AsyncIterator[bytes]:
        while not self._closed.is_set():
            changed, job = followed.changed, followed.job
            if job is None:
                yield _event("gone", {"type": "job.gone", "job_id": job_id}, "gone")
                return
            progress = _progress(job)
            if (id := _id_of(progress)) != last:
                last = id
                yield _event("progress", progress, id)
            if not _goes_on(job):
                result = _result(job)
                yield _event("result", result, _id_of(result))
                return
            if not await self._wait(changed):
                yield b": alive\n\n"

    async def _wait(self, changed: asyncio.Event) -> bool:
        """Until the job has changed or all ends; False: neither for a while."""
        waiting = [asyncio.ensure_future(changed.wait()), asyncio.ensure_future(self._closed.wait())]
        try:
            done, _ = await asyncio.wait(waiting, timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)
        finally:
            for future in waiting:
                future.cancel()

    def _learn(self, job_id: str, job: Job | None, look: int) -> None:
        """What a look saw; one that began before another may end after it, and tells nothing then."""
        followed = self._followed.get(job_id)
        if followed is None or look < followed.look:
            return
        followed.look = look
        if followed.job != job:
            followed.job = job
            followed.changed, changed = asyncio.Event(), followed.changed
            changed.set()

    async def _keep_looking(self) -> None:
        while self._followed and not self._closed.is_set():
            await asyncio.sleep(self._look_seconds)
            ids, look = list(self._followed), next(self._looks)
            try:
                jobs = await anyio.to_thread.run_sync(self._catalog.jobs_of, ids, limiter=self._readers)
            except CatalogAway as error:
                log.warning("%s", error.message)  # the streams stay, and go on when it is back
                continue
            for id in ids:
                self._learn(id, jobs.get(id), look)


def _goes_on(job: Job) -> bool:
    return goes_on(job.status, queued=job.queued, next_run_at=job.next_run_at)


def _progress(job: Job) -> dict[str, Any]:
    return {"type": "job.progress", "job_id": job.id, **shown(job)}


def _result(job: Job) -> dict[str, Any]:
    return {"type": "job.result", "job": job.model_dump(mode="json")}


def _id_of(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:24]


def _event(name: str, data: dict[str, Any], id: str) -> bytes:
    # JSON has no line breaks of its own, and ASCII none of Unicode's: an event is one line of data.
    return f"event: {name}\nid: {id}\ndata: {json.dumps(data, ensure_ascii=True)}\n\n".encode("ascii")

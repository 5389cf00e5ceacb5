"""Work that is done by a few threads, and handed on by one more in the order in which it came in."""

import os
import queue
import threading
from typing import Any, Callable, List, Optional

_WORKERS = 4  # more only heat a server that has other work


def workers() -> int:
    """How many threads for one kind of work: one a core that this process may use, within reason."""
    try:
        cores = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        cores = os.cpu_count() or 1
    return max(1, min(_WORKERS, cores))


class _Job:
    __slots__ = ("done", "item", "result")

    def __init__(self, item: Any) -> None:
        self.item = item
        self.result: Any = None
        self.done = threading.Event()


class Ordered:
    """`submit` items; each is worked on in one of `count` threads, and `emit` gets the results in order.

    `prepare` is called once in each thread and returns what works there. At most `bound` items are under way; submit
    waits for room. An error anywhere goes to `fail`, which ends the agent.
    """

    def __init__(
        self,
        prepare: Callable[[], Callable[[Any], Any]],
        emit: Callable[[Any], None],
        count: int,
        bound: int,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._prepare = prepare
        self._emit = emit
        self._fail = fail
        self._work: "queue.Queue[Optional[_Job]]" = queue.Queue()
        self._order: "queue.Queue[Optional[_Job]]" = queue.Queue()
        self._room = threading.Semaphore(bound)
        self._threads: List[threading.Thread] = []
        for target in [self._working] * count + [self._emitting]:
            self._threads.append(threading.Thread(target=target, daemon=True))
            self._threads[-1].start()

    def submit(self, item: Any) -> None:
        """Add one; waits while too many are under way."""
        self._room.acquire()
        job = _Job(item)
        self._order.put(job)
        self._work.put(job)

    def finish(self) -> None:
        """Wait until all was emitted, and end the threads."""
        for _ in self._threads[:-1]:
            self._work.put(None)
        self._order.put(None)
        for thread in self._threads:
            thread.join()

    def _working(self) -> None:
        try:
            work = self._prepare()
            while True:
                job = self._work.get()
                if job is None:
                    return
                job.result = work(job.item)
                job.item = None
                job.done.set()
        except BaseException as error:
            self._fail(error)

    def _emitting(self) -> None:
        try:
            while True:
                job = self._order.get()
                if job is None:
                    return
                job.done.wait()
                self._emit(job.result)
                del job
                self._room.release()
        except BaseException as error:
            self._fail(error)

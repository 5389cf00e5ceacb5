"""Many that do the same thing at the same time, as threads of one process and as processes of their own."""

from __future__ import annotations

import multiprocessing
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rehost.catalog.catalog import Catalog
from rehost.errors import RehostError
from rehost.settings import Settings

_LIMIT_SECONDS = 120


def outcomes(url: str, home: Path, *actions: Callable[[Catalog], str], processes: int = 2) -> Counter[str]:
    """What each action gave, or the code of its error; they begin together, shared among threads and processes.

    Each process has a catalog of its own, on which its share of the actions runs, a thread each.
    """
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(len(actions))
    told = context.SimpleQueue()
    shares = [actions[number::processes] for number in range(processes)]
    workers = [context.Process(target=_work, args=(url, home, share, barrier, told)) for share in shares if share]
    for worker in workers:
        worker.start()
    found = Counter(told.get() for _ in actions)
    for worker in workers:
        worker.join(_LIMIT_SECONDS)
        assert worker.exitcode == 0
    return found


def _work(
    url: str, home: Path, actions: tuple[Callable[[Catalog], str], ...], barrier: threading.Barrier, told: object
) -> None:
    with Catalog.open(Settings(home=home, database_url=url), patience=30) as catalog:

        def one(action: Callable[[Catalog], str]) -> str:
            try:
                catalog.ping()  # the connection is there
                barrier.wait(_LIMIT_SECONDS)
                return action(catalog)
            except RehostError as error:
                return error.code
            except BaseException as error:
                return repr(error)

        with ThreadPoolExecutor(len(actions)) as pool:
            for outcome in pool.map(one, actions):
                told.put(outcome)  # type: ignore[attr-defined]

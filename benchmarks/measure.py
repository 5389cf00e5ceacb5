"""What a benchmark gives, and how it is timed: Rehost and its peer in turns, in one run, the median of each."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

ROUNDS = 3


@dataclass(frozen=True)
class Row:
    """One comparison: seconds of the wall clock unless `unit` says otherwise; `bar` is the ratio not to be passed."""

    name: str
    rehost: float
    peer: float
    peer_name: str
    bar: float
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return self.rehost / self.peer

    @property
    def holds(self) -> bool:
        return self.ratio <= self.bar

    def as_json(self) -> dict[str, str | float | bool]:
        """The row of the last line."""
        return {
            "name": self.name,
            "rehost": round(self.rehost, 3),
            "peer": round(self.peer, 3),
            "peer_name": self.peer_name,
            "ratio": round(self.ratio, 3),
            "bar": self.bar,
            "holds": self.holds,
            "unit": self.unit,
        }


def compare(
    name: str,
    rehost: Callable[[], float | None],
    peer: Callable[[], float | None],
    peer_name: str,
    bar: float,
    clean: Callable[[], None] = lambda: None,
    rounds: int = ROUNDS,
) -> Row:
    """Time both in turns, that many times, so that a machine that gets slower meanwhile does so for both.

    Before each, not timed, `clean` removes what the one before left, and everything is brought to the disk. Work that
    times itself returns its seconds.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(1, rounds + 1):
        for work, taken, who in ((rehost, times[0], "rehost"), (peer, times[1], peer_name)):
            clean()
            os.sync()
            start = time.monotonic()
            seconds = work()
            taken.append(time.monotonic() - start if seconds is None else seconds)
            print(f"{name}, {number} of {rounds}: {who} {taken[-1]:.2f} s", file=sys.stderr, flush=True)
    clean()
    return Row(name, statistics.median(times[0]), statistics.median(times[1]), peer_name, bar)

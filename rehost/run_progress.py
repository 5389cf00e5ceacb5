"""One progress from 0 to 100 over all stages of a run: bytes, rate, and the time that the whole run still takes.

Arithmetic alone: the clock is given, nothing is written. A stage has a share of what was left of the bar when it began,
by how long it and the stages after it are thought to take. So the bar never goes back and never jumps: a stage that is
tried again has a smaller part of the bar for itself, and the part of one that is left out goes to those after it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

RATE_SECONDS = 10.0  # the rate is that of the last so many seconds
_MOST = 99  # percent; the last one is for the run that succeeded
_PACE_SECONDS = 2.0  # a stage that is younger tells nothing of its pace


@dataclass(frozen=True, slots=True)
class Figures:
    """How far a run is."""

    percent: int  # 0 to 99
    eta_seconds: int | None  # of the whole run; None: nothing to tell it by
    bytes_done: int | None  # of the present stage; None where it counts no bytes
    bytes_total: int | None
    bytes_per_second: int | None


class RunProgress:
    """The progress of one run. Safe to tell and to ask from several threads."""

    def __init__(
        self,
        expected: Mapping[str, float],
        *,
        measured: bool = False,
        percent: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`expected` has the stages in order with their seconds; `measured`: an earlier run took that long."""
        self._expected = dict(expected)
        self._measured = measured
        self._clock = clock
        self._lock = threading.Lock()
        self._percent = min(float(percent), _MOST)  # where the bar is; it never goes back
        self._stage: str | None = None
        self._from = self._to = self._percent  # the part of the bar that the stage has
        self._began = clock()
        self._fraction = 0.0
        self._bytes: tuple[int, int] | None = None
        self._samples: deque[tuple[float, int]] = deque()
        self._seconds: dict[str, float] = {}
        self._worked = 0.0  # expected seconds of the stages that are done, and the seconds that they took
        self._worked_seconds = 0.0

    def begin(self, stage: str) -> None:
        """The stage begins, or begins again."""
        with self._lock:
            self._leave()
            if stage not in self._expected:
                self._insert(stage)
            self._stage = stage
            ahead = self._ahead(stage)
            self._from = self._percent
            self._to = self._from + (_MOST - self._from) * self._expected[stage] / (self._expected[stage] + ahead)
            self._began = self._clock()
            self._fraction, self._bytes = 0.0, None
            self._samples.clear()

    def report(self, done: int, total: int) -> None:
        """Bytes of the present stage; a total of 0 means that it is not known, and changes nothing."""
        if total <= 0:
            return
        with self._lock:
            if self._stage is None:
                return
            if self._bytes is None:
                self._move()
                self._from = self._percent  # bytes tell from here on: what time has told stays, and is not waited for
            before = self._bytes[0] if self._bytes else 0
            done = max(before, min(done, total))
            self._bytes = (done, max(done, total))
            self._fraction = max(self._fraction, min(1.0, done / total))
            now = self._clock()
            self._samples.append((now, done))
            # The newest of those that are too old stays: a rate needs two ends.
            while len(self._samples) > 1 and self._samples[1][0] <= now - RATE_SECONDS:
                self._samples.popleft()

    def finish(self) -> None:
        """The present stage is done."""
        with self._lock:
            if self._stage is None:
                return
            self._fraction = 1.0
            self._move()
            self._worked += self._expected[self._stage]
            self._worked_seconds += self._clock() - self._began
            self._leave()

    def figures(self) -> Figures:
        """How far the run is now."""
        with self._lock:
            self._move()
            done, total = self._bytes or (None, None)
            rate = self._rate()
            eta = self._eta(rate)
            return Figures(
                percent=int(self._percent + 1e-6),
                eta_seconds=None if eta is None else max(0, round(eta)),
                bytes_done=done,
                bytes_total=total,
                bytes_per_second=None if rate is None else round(rate),
            )

    def seconds(self) -> dict[str, float]:
        """How long each stage took so far, all its tries together."""
        with self._lock:
            return dict(self._seconds)

    def _insert(self, stage: str) -> None:
        """A stage that nobody thought of comes after the last one that was begun, and takes as long as most."""
        stages = list(self._expected.items())
        place = len(stages) - len(self._left())
        usual = sum(seconds for _, seconds in stages) / len(stages) if stages else 1.0
        self._expected = dict([*stages[:place], (stage, usual), *stages[place:]])

    def _left(self) -> list[str]:
        """The stages after the last one that was begun."""
        names = list(self._expected)
        last = max((names.index(name) for name in self._seconds), default=-1)
        return names[last + 1 :]

    def _leave(self) -> None:
        if self._stage is not None:
            self._move()
            took = self._clock() - self._began
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + took
        self._stage, self._bytes = None, None
        self._samples.clear()

    def _move(self) -> None:
        if self._stage is None:
            return
        fraction = self._fraction
        if self._bytes is None and fraction < 1.0:
            # It cannot tell how far it is: half of its part after the time that it is thought to take, never all.
            took, expected = self._clock() - self._began, self._expected[self._stage]
            fraction = took / (took + expected)
        self._percent = max(self._percent, self._from + (self._to - self._from) * fraction)

    def _ahead(self, stage: str | None) -> float:
        """Expected seconds of the stages after this one; all that are left where none is under way."""
        names = list(self._expected)
        after = self._left() if stage is None else names[names.index(stage) + 1 :]
        return sum(self._expected[name] for name in after)

    def _rate(self) -> float | None:
        """Bytes a second over the last ten seconds, those among them in which nothing came."""
        if len(self._samples) < 2:
            return None
        (began, first), (_, last) = self._samples[0], self._samples[-1]
        passed = max(self._clock(), self._samples[-1][0]) - began
        return (last - first) / passed if passed > 0 else None

    def _eta(self, rate: float | None) -> float | None:
        here, took = 0.0, 0.0
        if self._stage is not None:
            took = self._clock() - self._began
            expected = self._expected[self._stage]
            if rate and self._bytes is not None and took >= _PACE_SECONDS:
                here = (self._bytes[1] - self._bytes[0]) / rate
            elif self._fraction > 0 and took >= _PACE_SECONDS:
                here = took * (1 - self._fraction) / self._fraction
            elif self._measured:
                here = max(0.0, expected - took)
            else:
                pace = self._pace()
                if pace is None:
                    return None
                here = max(0.0, expected * pace - took)
        ahead = self._ahead(self._stage)
        if self._measured:
            return here + ahead
        pace = self._pace()
        if pace is None and ahead:
            return None
        return here + ahead * (pace or 0.0)

    def _pace(self) -> float | None:
        """Seconds that it takes for a second that was expected, by what is done so far."""
        done, took = self._worked, self._worked_seconds
        if self._stage is not None and self._bytes is not None:
            done += self._expected[self._stage] * self._fraction
            took += self._clock() - self._began
        return took / done if done > 0 else None

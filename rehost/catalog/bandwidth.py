"""How fast a source may send, by the hour: a limit, and windows of the week in which another one counts.

A window is told by the clock on the wall of a time zone and belongs to the day on which it begins; it may end after
midnight. Everything here is pure: the moment is an argument.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self, get_args
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
_DAY = 24 * 60
_WEEK = 7 * _DAY
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|(24):(00)")
_LONGEST = timedelta(days=366)
_LOOKED_AHEAD = timedelta(days=8)  # a week, and a day in which the clocks were changed

Kbps = Annotated[int, Field(strict=True, ge=0, le=100_000_000, description="KB/s of 1,000 bytes; 0: no limit")]


def _check_clock(text: str) -> str:
    if not _CLOCK.fullmatch(text):
        raise ValueError("is a time of the day such as 08:00")
    return text


def _check_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ValueError("is no time zone of the IANA database") from error
    return name


Clock = Annotated[str, AfterValidator(_check_clock)]
Zone = Annotated[str, Field(max_length=64), AfterValidator(_check_zone)]


class BandwidthWindow(BaseModel):
    """A part of some days, or of every day, in which a limit of its own counts."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    days: tuple[Day, ...] = Field(DAYS, min_length=1, description="on which it begins; default: every day")
    begin: Clock = Field(alias="from", examples=["08:00"])
    end: Clock = Field(alias="to", description="as early as `from` or earlier: on the next day; 24:00: at midnight")
    limit_kbps: Kbps

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(set(self.days)) != len(self.days):
            raise ValueError("names a day twice")
        if self.begin == "24:00":
            raise ValueError("begins at 00:00 of the next day, not at 24:00")
        if self.begin == self.end:
            raise ValueError("ends when it begins; a whole day is from 00:00 to 24:00")
        return self

    def minutes(self) -> Iterator[tuple[int, int]]:
        """Its beginnings and ends in minutes of the week, Monday 00:00 is 0; an end may be past the week's."""
        begin, end = _minute(self.begin), _minute(self.end)
        for day in self.days:
            start = DAYS.index(day) * _DAY + begin
            yield start, start + (end - begin if end > begin else end - begin + _DAY)


def _no_overlap(calendar: tuple[BandwidthWindow, ...]) -> tuple[BandwidthWindow, ...]:
    taken = sorted(span for window in calendar for span in window.minutes())
    if taken:
        taken.append((taken[0][0] + _WEEK, 0))
    for (_, end), (begin, _) in itertools.pairwise(taken):
        if begin < end:
            minute = begin % _WEEK
            hour, rest = divmod(minute % _DAY, 60)
            raise ValueError(f"has two windows for {DAYS[minute // _DAY]} {hour:02}:{rest:02}")
    return calendar


Calendar = Annotated[tuple[BandwidthWindow, ...], Field(max_length=50), AfterValidator(_no_overlap)]


class Bandwidth(BaseModel):
    """What of a job decides how fast its source may send."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bandwidth_limit_kbps: Kbps = 0
    bandwidth_calendar: Calendar = Field((), description="windows with limits of their own; none overlaps another")
    bandwidth_timezone: Zone = Field("UTC", description="of the calendar's clock")


def limit_at(bandwidth: Bandwidth, moment: datetime) -> int:
    """The limit that counts at an aware moment, in KB/s; 0: none."""
    local = moment.astimezone(ZoneInfo(bandwidth.bandwidth_timezone))
    minute = local.weekday() * _DAY + local.hour * 60 + local.minute
    for window in bandwidth.bandwidth_calendar:
        if any(begin <= minute < end or begin <= minute + _WEEK < end for begin, end in window.minutes()):
            return window.limit_kbps
    return bandwidth.bandwidth_limit_kbps


def next_change(bandwidth: Bandwidth, moment: datetime) -> datetime | None:
    """When another limit than at that aware moment will count first, in UTC; None: never.

    A window whose edge falls into the hour that a change of the clocks leaves out or repeats may be told of an hour
    late; `limit_at` never is.
    """
    zone = ZoneInfo(bandwidth.bandwidth_timezone)
    local = moment.astimezone(zone)
    monday = datetime(local.year, local.month, local.day) - timedelta(days=local.weekday())
    edges = {
        (monday + timedelta(minutes=minute + week * _WEEK)).replace(tzinfo=zone, fold=fold).astimezone(UTC)
        for window in bandwidth.bandwidth_calendar
        for span in window.minutes()
        for minute in span
        for week in (-1, 0, 1)
        for fold in (0, 1)
    }
    now = limit_at(bandwidth, moment)
    for edge in sorted(edges):
        if moment < edge <= moment + _LOOKED_AHEAD and limit_at(bandwidth, edge) != now:
            return edge
    return None


def seconds_for(size: int, bytes_per_second: int, bandwidth: Bandwidth, moment: datetime) -> int | None:
    """How long so many bytes take from that moment on, at that rate or the limit of the hour; None: over a year."""
    left, at, end = float(size), moment, moment + _LONGEST
    while left > 0:
        limit = limit_at(bandwidth, at) * 1000
        rate = min(limit, bytes_per_second) if limit else bytes_per_second
        change = next_change(bandwidth, at)
        until = end if change is None else min(change, end)
        if left <= (until - at).total_seconds() * rate:
            return math.ceil((at - moment).total_seconds() + left / rate)
        if until == end:
            return None
        left -= (until - at).total_seconds() * rate
        at = until
    return 0


def _minute(clock: str) -> int:
    hour, minute = clock.split(":")
    return int(hour) * 60 + int(minute)

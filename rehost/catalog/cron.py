"""Cron expressions of five fields: checked, held to one run an hour at most, and asked for the next run.

The grammar is that of crontab(5): `*`, numbers, ranges, lists, steps, names of months and days, 0 and 7 for Sunday.
Where both day fields are restricted, either one is enough. What counts as restricted is as Prefect has it, which runs
the schedules: `*/2` does, and so does a field that names every day, unless the other one has a star.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

_MONTHS = {
    name: number
    for number, name in enumerate(
        ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"], 1
    )
}
_DAYS = {name: number for number, name in enumerate(["sun", "mon", "tue", "wed", "thu", "fri", "sat"])}
_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 7, _DAYS),
)
_DAYS_AHEAD = 366 * 8 + 2  # 29 February skips at most one leap year: 1896 to 1904, 2096 to 2104


@dataclass(frozen=True)
class Cron:
    """A parsed expression; `minute` is one number, because it may run once an hour at most."""

    minute: int
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    any_day: bool  # the field restricts nothing
    any_weekday: bool

    def _matches(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        by_day, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if self.any_day or self.any_weekday:
            return by_day and by_weekday
        return by_day or by_weekday

    def next_after(self, moment: datetime, timezone: str) -> datetime | None:
        """The first run after an aware moment, in UTC; None where no day ever matches (30 February)."""
        zone = ZoneInfo(timezone)
        start = moment.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
        for offset in range(_DAYS_AHEAD):
            day = start + timedelta(days=offset)
            if not self._matches(day):
                continue
            for hour in sorted(self.hours):
                at = day.replace(hour=hour, minute=self.minute, tzinfo=zone).astimezone(UTC)
                if at > moment:
                    return at
        return None


def parse(expression: str) -> Cron:
    """Raises ValueError with a sentence that says which field is wrong."""
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        raise ValueError("has five fields: minute, hour, day of the month, month, day of the week")
    minutes, hours, days, months, weekdays = (
        _parse_field(text.lower(), *rule) for text, rule in zip(fields, _FIELDS, strict=True)
    )
    if len(minutes) != 1:
        raise ValueError("runs more than once an hour: give one minute from 0 to 59")
    cron = Cron(
        minute=next(iter(minutes)),
        hours=hours,
        days=days,
        months=months,
        weekdays=frozenset(day % 7 for day in weekdays),
        any_day=fields[2] == "*" or (len(days) == 31 and "*" in fields[4]),
        any_weekday=fields[4] == "*" or (len({day % 7 for day in weekdays}) == 7 and "*" in fields[2]),
    )
    if cron.next_after(datetime(2024, 1, 1, tzinfo=UTC), "UTC") is None:
        raise ValueError("names a day that never comes")
    return cron


def _parse_field(text: str, what: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step_text = part.partition("/")
        step = _number(step_text, what, 1, high, {}) if "/" in part else 1
        if span == "*":
            first, last = low, high
        elif "-" in span:
            first_text, _, last_text = span.partition("-")
            first, last = _number(first_text, what, low, high, names), _number(last_text, what, low, high, names)
            if first > last:
                raise ValueError(f"the {what} has a range that ends before it begins")
        else:
            first = _number(span, what, low, high, names)
            last = high if "/" in part else first
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(text: str, what: str, low: int, high: int, names: dict[str, int]) -> int:
    if text in names:
        return names[text]
    if text.isascii() and text.isdigit() and len(text) <= 2 and low <= int(text) <= high:
        return int(text)
    raise ValueError(f"the {what} is from {low} to {high}")

"""A CSV file with a row for each thing that is to be made: read, and its cells told by the names of their columns.

RFC 4180 as spreadsheets write it: UTF-8 with or without a byte order mark, lines ended by LF or CRLF, commas, cells in
double quotes where they hold a comma, a quote or a line's end. The first row names the columns, in any order.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rehost.catalog.faults import Fault, raise_faults

MAX_ROWS = 1000
_FLAGS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True)
class Row:
    """One row; cells that are empty are left out."""

    number: int  # as a spreadsheet counts: the names of the columns are row 1
    cells: Mapping[str, str]
    fault: str | None = None  # the row has not the cells of its columns


def read(content: bytes, columns: Collection[str]) -> tuple[Row, ...]:
    """The rows of a file, blank ones left out. Raises InvalidParameter for a file that is none as a whole."""
    try:
        text = content.decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except UnicodeDecodeError:
        return _refuse("is not UTF-8: save it as `CSV UTF-8`")
    except csv.Error as error:
        return _refuse(f"is no CSV: {error}")
    if "\0" in text:
        return _refuse("holds a NUL character")
    if not lines or not any(lines[0]):
        return _refuse("is empty: the first row names the columns")
    names = [name.strip().lower() for name in lines[0]]
    _check_header(names, columns)
    rows = [_row(number, names, line) for number, line in enumerate(lines[1:], 2) if any(cell.strip() for cell in line)]
    if not 1 <= len(rows) <= MAX_ROWS:
        return _refuse(f"has {len(rows)} rows: 1 to {MAX_ROWS} are taken at once")
    return tuple(rows)


def _refuse(reason: str) -> tuple[Row, ...]:
    raise_faults([Fault("", reason)])
    return ()


def _check_header(names: Sequence[str], columns: Collection[str]) -> None:
    faults = [
        Fault("", f"has no column {name!r}: the columns are {', '.join(columns)}, separated by commas")
        for name in dict.fromkeys(names)
        if name not in columns
    ]
    faults += [Fault("", f"has the column {name} twice") for name in dict.fromkeys(names) if names.count(name) > 1]
    raise_faults(faults)


def _row(number: int, names: Sequence[str], line: Sequence[str]) -> Row:
    if len(line) != len(names):
        return Row(number, {}, f"has {len(line)} cells for {len(names)} columns")
    cells = zip(names, (cell.strip() for cell in line), strict=True)
    return Row(number, {name: cell for name, cell in cells if cell})


def whole(text: str) -> int | str:
    """A number; what is none stays text, for the rule to refuse."""
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 20 else text


def flag(text: str) -> bool | str:
    """Yes or no; what is neither stays text."""
    return _FLAGS.get(text.lower(), text)


def several(text: str) -> list[str]:
    """A list by semicolons."""
    return [part.strip() for part in text.split(";") if part.strip()]


def tags(text: str) -> dict[str, str] | str:
    """`key=value` by semicolons; what is not of that form stays text."""
    pairs = [part.partition("=") for part in several(text)]
    if any(not equals for _, equals, _ in pairs) or len({key.strip() for key, _, _ in pairs}) < len(pairs):
        return text
    return {key.strip(): value.strip() for key, _, value in pairs}


def put(body: dict[str, Any], pointer: str, value: Any) -> None:
    """Set the member of a document at a JSON pointer of plain names, and the objects on the way."""
    *way, last = pointer.removeprefix("/").split("/")
    for name in way:
        body = body.setdefault(name, {})
    body[last] = value


def column_at(pointer: str, places: Mapping[str, str]) -> str:
    """The column that filled the place of a fault: that of the longest pointer that leads there, else none: ""."""
    leading = [place for place in places if pointer == place or pointer.startswith(f"{place}/")]
    return places[max(leading, key=len)] if leading else ""

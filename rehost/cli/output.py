"""What the command line prints: tables and facts for people, JSON for programs.

Text of a source (host names, units, paths) is shown without control characters and never read as markup.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rehost.amounts import size_text
from rehost.cli.client import Json


def plain(value: object) -> str:
    """A value as one line of text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(k)}={plain(v)}" for k, v in value.items()) or "–"
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def size(value: object) -> str:
    """Bytes for people."""
    return size_text(value) if isinstance(value, int) else plain(value)


def print_json(value: Json) -> None:
    """One JSON document."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_line(value: Json) -> None:
    """One JSON document on one line, at once."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table with as much of each cell as fits; nothing is cut where the output is no terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    _console().print(table)


def print_facts(facts: Sequence[tuple[str, object]]) -> None:
    """One fact on each line; those that are None are left out."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value is not None:
            table.add_row(name, Text(plain(value)))
    _console().print(table)


def print_more(page: Json) -> None:
    """Say that a list goes on."""
    cursor = page.get("next_cursor")
    if cursor:
        print(f"{len(page['items'])} of {page['total']}; the next ones: --cursor {cursor}", file=sys.stderr)


def print_error(code: str, message: str, remedy: str, faults: Sequence[tuple[str, str]] = ()) -> None:
    """Code, sentence, remedy, and each fault on a line of its own, on standard error."""
    print(f"{plain(code)}: {plain(message)}", file=sys.stderr)
    for pointer, text in faults:
        print(f"  {plain(pointer) or '(body)'}: {plain(text)}", file=sys.stderr)
    if remedy:
        print(plain(remedy), file=sys.stderr)


def _console() -> Console:
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, width=None if terminal else 400, markup=False, highlight=False)


def value_at(record: Mapping[str, Any], *path: str) -> Any:
    """A member of nested objects, or None where one of them is not there."""
    at: Any = record
    for name in path:
        at = at.get(name) if isinstance(at, Mapping) else None
    return at

"""Templates and the files beside them.

What comes from servers is hostile: everything is escaped, and characters that are not printable (control characters,
those that turn the direction of text) are shown as what they are instead of doing what they do.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rehost.amounts import size_text

_KEPT = "\n\t"
_MEDIA_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Asset:
    """A file of our own that pages refer to; `digest` is in its address, so that it may be kept for ever."""

    content: bytes
    media_type: str
    digest: str


def visible(text: str) -> str:
    """The text with what is not printable made visible; lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT else _named(ord(c)) for c in text)


def _named(number: int) -> str:
    if number < 0x20:
        return chr(0x2400 + number)  # Unicode's pictures of the control characters
    return "\N{SYMBOL FOR DELETE}" if number == 0x7F else f"⟨U+{number:04X}⟩"


def size(amount: int | float | None) -> str:
    """Bytes for people."""
    return "–" if amount is None else size_text(amount)


def span(seconds: float | None) -> str:
    """A length of time for people."""
    if seconds is None:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * _MINUTE:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.1f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:.0f} days"


def moment(time: datetime | None, missing: str = "–") -> Markup | str:
    """A point in time as the page shows it, in UTC, with how long ago it was (or how far ahead)."""
    if time is None:
        return missing
    utc = time.astimezone(UTC)
    passed = (datetime.now(UTC) - utc).total_seconds()
    told = "now" if abs(passed) < 5 else f"{span(passed)} ago" if passed > 0 else f"in {span(-passed)}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        utc.isoformat(timespec="seconds"), f"{utc:%Y-%m-%d %H:%M:%S} UTC", told
    )


def prose(text: str) -> Markup:
    """A sentence of ours: what it has between backticks is set as code."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0:
        return escape(visible(text))
    quoted = (Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in enumerate(parts))
    return Markup("").join(quoted)


def field_id(pointer: str) -> str:
    """The id of the element for a field, by its JSON pointer."""
    return "f" + pointer.replace("/", "-").replace("~", "_")


def _shown(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, Markup) else visible(str(value))


@functools.cache
def assets() -> Mapping[str, Asset]:
    """The stylesheet and the script by name, read once."""
    found = {}
    for file in files("api.console").joinpath("static").iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type is not None:
            content = file.read_bytes()
            found[file.name] = Asset(content, media_type, hashlib.sha256(content).hexdigest()[:16])
    return found


def asset_address(name: str) -> str:
    """Where pages find a file of ours."""
    return f"/static/{name}?v={assets()[name].digest}"


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("api.console"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size, span=span, moment=moment, prose=prose, field_id=field_id)
    environment.globals.update(asset=asset_address)
    return environment


def render(template: str, values: Mapping[str, Any]) -> str:
    """The page that the template makes of these values; a value that is missing is an error."""
    return _environment().get_template(template).render(values)

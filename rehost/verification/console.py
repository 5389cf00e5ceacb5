"""Reads a guest's serial console."""

from __future__ import annotations

import re

_ESCAPES = re.compile(
    r"\x1b\[[0-9;:<=>?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC with their text
    r"|\x1b[ -/]*[0-~]?"  # all others
)


def cleaned(line: bytes) -> str:
    """One line as text that is safe to show: no escape sequences, no control characters but tabs."""
    text = _ESCAPES.sub("", line.decode("utf-8", "replace"))
    return "".join(c for c in text if c == "\t" or c.isprintable())

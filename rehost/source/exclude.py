"""Patterns of what a scan leaves out, as one regular expression; docs/wire.md tells what they mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


def exclude_expression(patterns: Sequence[str]) -> str:
    """A regular expression that fully matches the paths to leave out; empty for no patterns.

    It is matched against the absolute path, as text (UTF-8, stray bytes as surrogates), with a NUL, which no name
    holds, at the end of a directory's. It uses nothing that Python 3.6 does not know.
    """
    return "|".join(f"(?:{_expression(pattern)})" for pattern in patterns if pattern.strip("/"))


def excluder(patterns: Sequence[str]) -> Callable[[bytes, bool], bool]:
    """Whether a path, relative to the root, of a directory or not, is left out; what is below it goes with it."""
    expression = exclude_expression(patterns)
    if not expression:
        return lambda path, is_directory: False
    compiled = re.compile(expression, re.DOTALL)

    def excluded(path: bytes, is_directory: bool) -> bool:
        text = "/" + path.decode("utf-8", "surrogateescape") + ("\0" if is_directory else "")
        return compiled.fullmatch(text) is not None

    return excluded


def _expression(pattern: str) -> str:
    anchored = pattern.startswith("/")
    directories_only = pattern.endswith("/")
    body = pattern.strip("/")
    parts = ["/" if anchored else "/(?:(?s:.)*/)?"]
    at = 0
    while at < len(body):
        if body.startswith("**/", at):
            parts.append(r"(?:(?s:.)*/)?")
            at += 3
        elif body.startswith("**", at):
            parts.append(r"(?s:.)*")
            at += 2
        elif body[at] == "*":
            parts.append(r"[^/\0]*")
            at += 1
        elif body[at] == "?":
            parts.append(r"[^/\0]")
            at += 1
        elif body[at] == "[" and (end := body.find("]", at + 2 + body.startswith(("[!", "[^"), at))) > 0:
            inside = body[at + 1 : end]
            negated = inside[0] in "!^"
            members = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside[negated:])
            parts.append(rf"(?![/\0])[{'^' if negated else ''}{members}]")
            at = end + 1
        elif body[at] == "\\" and at + 1 < len(body):
            parts.append(re.escape(body[at + 1]))
            at += 2
        else:
            parts.append(re.escape(body[at]))
            at += 1
    parts.append(r"\0" if directories_only else r"\0?")
    return "".join(parts)

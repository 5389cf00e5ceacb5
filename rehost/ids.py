"""Ids: a letter that tells the kind, then 20 lower-case letters or digits, drawn at random."""

from __future__ import annotations

import secrets
import string
from typing import Literal

Kind = Literal["s", "j", "r", "m", "v", "n", "b", "k"]
"""source, job, run, image, verification, n for a snapshot, and b for jobs that are started together."""

_ALPHABET = string.ascii_lowercase + string.digits


def new_id(kind: Kind) -> str:
    """A new id of that kind."""
    return f"{kind}-" + "".join(secrets.choice(_ALPHABET) for _ in range(20))

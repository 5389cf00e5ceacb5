"""Ids: a letter that tells the kind, then 20 lower-case letters or digits, drawn at random."""

from __future__ import annotations

import secrets
import string
from typing import Literal

Kind = Literal["s", "j", "r", "m", "v", "n"]
"""source, job, run, image, verification, and n for a snapshot."""

_ALPHABET = string.ascii_lowercase + string.digits


def new_id(kind: Kind) -> str:
    """A new id of that kind."""
    return f"{kind}-" + "".join(secrets.choice(_ALPHABET) for _ in range(20))

"""Amounts as people read them."""

from __future__ import annotations


def size_text(amount: float) -> str:
    """Bytes with the largest unit of 1,024 that fits, to one digit behind the point."""
    number = float(amount)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"

"""What of an image is tested: a disk image by each firmware that it starts with, a container image once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Trial:
    """One test of an image."""

    subject: str  # as its report names it
    firmware: Literal["bios", "uefi"] | None  # None for a container


def disk_subject(image: Path, firmware: str) -> str:
    """How the report of a disk's test boot names what was tested."""
    return f"{image.name} ({firmware})"


def trials_of(facts: Mapping[str, Any]) -> tuple[Trial, ...]:
    """The tests of an image, by what its image.json says."""
    if facts.get("kind") == "container":
        return (Trial(str(facts["reference"]), None),)
    disk = Path(str(facts["disks"][0]["location"]))
    return tuple(Trial(disk_subject(disk, firmware), firmware) for firmware in facts["boot_modes"])

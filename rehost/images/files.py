"""The files of an image and of a verification, on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rehost.catalog.records import Image, VerificationRecord
from rehost.disk_formats import ending_of, media_type_of
from rehost.errors import EvidenceNotFound, ImageDiskNotFound, ImageFileNotFound
from rehost.settings import Settings
from rehost.verification.console import cleaned

EvidenceKind = Literal["console_log", "screenshot", "report"]

_MAX_EVIDENCE_BYTES = 64 << 20  # more than any verification keeps
_TAR = "application/x-tar"
_EVIDENCE_TYPES: dict[EvidenceKind, str] = {
    "console_log": "text/plain; charset=utf-8",
    "screenshot": "image/png",
    "report": "application/json",
}


@dataclass(frozen=True)
class ImageFile:
    """A file that can be downloaded. It never changes: whoever asks for a part of it later gets a part of the same."""

    path: Path
    name: str  # what a person wants it to be called
    media_type: str
    etag: str  # without quotes
    sha256: str | None  # in hex; None: not known


def disk_file(image: Image, index: int, format: str | None) -> ImageFile:
    """That disk of the image, in that format or the first that it was asked for in.

    Raises ImageDiskNotFound, and ImageFileNotFound where this machine does not have it.
    """
    disks = [disk for disk in image.facts.get("disks", []) if disk.get("index") == index]
    if not disks:
        reason = "it is a container image" if image.kind == "container" else f"it has no disk {index}"
        raise ImageDiskNotFound(id=image.id, reason=reason)
    found = next((disk for disk in disks if format in (None, disk["format"])), None)
    if found is None:
        formats = ", ".join(str(disk["format"]) for disk in disks)
        raise ImageDiskNotFound(id=image.id, reason=f"disk {index} is there as {formats}")
    path = _there(image, found["location"])
    part = f"-disk-{index}" if index else ""
    return ImageFile(
        path,
        f"{image.name}{part}.{ending_of(str(found['format']))}",
        media_type_of(str(found["format"])),
        str(found["sha256"]),
        str(found["sha256"]),
    )


def archive_file(image: Image) -> ImageFile:
    """The archive of a container image, as `docker load` takes it. Raises ImageDiskNotFound, ImageFileNotFound."""
    if image.kind != "container":
        raise ImageDiskNotFound(id=image.id, reason="a disk image has disks and no archive")
    path = _there(image, str(image.facts["location"]))
    name = str(image.facts["name"]).replace("/", "-")
    return ImageFile(path, f"{name}.tar", _TAR, f"{image.id}-{image.facts['engine_id']}", None)


def _there(image: Image, location: str) -> Path:
    path = Path(location)
    if not path.is_file():
        raise ImageFileNotFound(id=image.id, path=location)
    return path


def evidence(verification: VerificationRecord, kind: EvidenceKind, settings: Settings) -> tuple[bytes, str]:
    """What the verification kept of that kind, and its media type. Text has no control characters but line ends.

    Raises EvidenceNotFound.
    """
    told: str | None = getattr(verification.evidence, kind)
    if told is None:
        raise EvidenceNotFound(id=verification.id, kind=kind, reason="none was kept")
    # The name alone is taken from the record: the folder is the verification's own.
    path = evidence_folder(settings, verification.id) / Path(told).name
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_EVIDENCE_BYTES)
    except OSError as error:
        raise EvidenceNotFound(id=verification.id, kind=kind, reason="it is not on this machine any more") from error
    if kind == "console_log":
        content = "\n".join(cleaned(line) for line in content.splitlines()).encode()
    return content, _EVIDENCE_TYPES[kind]


def evidence_folder(settings: Settings, verification_id: str) -> Path:
    """Where the evidence of that verification is kept."""
    return settings.evidence_path / verification_id

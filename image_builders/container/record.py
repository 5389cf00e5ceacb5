"""The record of a container image: what the builder gives back, and what image.json beside the image holds."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Literal

from image_builders.container.left_out import LeftOut
from rehost.source.inventory import Record

ARCHIVE_NAME = "image.tar"
RECORD_NAME = "image.json"
DIFF_NAME = "changes.diff"


class ImageLayer(Record):
    """One layer as it lies in the archive: not compressed."""

    digest: str  # sha256:… of the tar; also its diff id
    size: int  # bytes


class ContainerImage(Record):
    """A container image that was built and loaded, and pushed where `published` says so."""

    kind: Literal["container"] = "container"
    id: str  # m-…
    name: str  # namespace/repository
    source_id: str
    snapshot_id: str
    reference: str  # with registry and tag, as `docker run` takes it
    digest: str  # of the manifest in the registry once published, else the engine's id of the image
    engine_id: str  # what the engine calls the image, whatever its tags: the digest of its configuration
    published: bool = False
    architecture: str  # as Go names it: amd64
    os: Literal["linux"] = "linux"
    size: int  # bytes of all layers
    layers: tuple[ImageLayer, ...]
    command: tuple[str, ...]
    systemd: bool
    stop_signal: str
    exposed_ports: tuple[str, ...]  # "80/tcp"
    local_ports: tuple[str, ...]  # services that listened on the loopback interface alone
    run_arguments: tuple[str, ...]  # argv that runs the image on the engine that it was loaded into
    labels: dict[str, str]
    left_out: tuple[LeftOut, ...]
    warnings: tuple[str, ...]
    created_at: datetime  # of the snapshot
    location: str  # absolute path of the archive: `docker load` and OCI tools take it
    changes: str  # absolute path of the diff of all fix-ups


def write_record(image: ContainerImage) -> None:
    """Write image.json beside the archive, at once or not at all."""
    path = Path(image.location).with_name(RECORD_NAME)
    part = path.with_suffix(".json.part")
    text = json.dumps(image.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_record(directory: Path) -> ContainerImage:
    """The record of the image in that folder."""
    return ContainerImage.model_validate_json((directory / RECORD_NAME).read_bytes())

"""Deleted images go: their files, what the container engine has of them, the evidence of their tests, their rows.

All of it can be tried again: what is gone already is no fault. What cannot go now stays recorded as deleted, and the
next call tries again. What was pushed to a registry stays there.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from rehost.catalog.catalog import Catalog
from rehost.catalog.records import Image
from rehost.errors import RehostError
from rehost.images.engine import remove_from_engine
from rehost.images.files import evidence_folder
from rehost.settings import Settings

log = logging.getLogger(__name__)

_RECORD_NAME = "image.json"


def remove_deleted(catalog: Catalog, settings: Settings) -> list[str]:
    """Remove what is left of every deleted image; the ids of those of which nothing is left now."""
    gone = []
    for image in catalog.deleted_images():
        try:
            if not _removed(catalog, settings, image):
                continue
            catalog.forget_image(image.id)
            gone.append(image.id)
        except (RehostError, OSError) as error:
            log.warning("image %s is deleted, but not yet gone: %s", image.id, error)
    return gone


def _removed(catalog: Catalog, settings: Settings, image: Image) -> bool:
    folder = folder_of(image, settings)
    if not folder.parent.is_dir():
        return False  # the region's images lie on another machine, which removes them
    remove_folder(folder)
    for id in catalog.verification_ids(image.id):
        remove_folder(evidence_folder(settings, id))
    return image.kind != "container" or remove_from_engine(
        str(image.facts["engine_id"]), str(image.facts["reference"]), catalog.engine_references()
    )


def folder_of(image: Image, settings: Settings) -> Path:
    """The image's own folder: where its record says that its files lie, else where its region has images now."""
    told = [image.facts.get("location"), *(disk.get("location") for disk in image.facts.get("disks", []))]
    folders = (Path(location).parent for location in told if location)
    return next((f for f in folders if f.name == image.id), settings.images_path(image.region_id) / image.id)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; one that is not there, or that somebody else removes, is no fault."""
    while folder.exists():
        try:
            (folder / _RECORD_NAME).unlink(missing_ok=True)  # a folder without it holds no image
            shutil.rmtree(folder)
        except FileNotFoundError:
            continue

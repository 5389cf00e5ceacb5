"""Images that no rule keeps go, and what is left of deleted ones: after each pass, and in housekeeping."""

from __future__ import annotations

import logging

from rehost.errors import ContainerEngineAway, ImageInUse, ImageNotFound, RehostError
from rehost.images.engine import remove_untagged
from rehost.images.removal import remove_deleted
from rehost.settings import settings
from tasks.run_pass import catalog

log = logging.getLogger(__name__)


def forget_old_images() -> list[str]:
    """Delete the images that no rule keeps (`rehost.catalog.retention`), and remove what is left of deleted ones.

    The ids of the images of which nothing is left. Where that fails the log says why, and the next call tries again.
    """
    try:
        with catalog() as opened:
            for id in opened.superfluous_images():
                try:
                    opened.delete_images([id])
                except (ImageInUse, ImageNotFound) as error:  # since the look at it
                    log.info("%s", error)
            return remove_deleted(opened, settings())
    except RehostError as error:
        log.warning("old images stay for now: %s", error)
        return []


def tidy_images() -> None:
    """Old images go, and those that an image which was built again left nameless in the container engine."""
    forget_old_images()
    try:
        with catalog() as opened:
            named = opened.engine_references()
            sources = opened.source_ids()
        if gone := remove_untagged(sources, named):
            log.info("%d nameless images left the engine", len(gone))
    except ContainerEngineAway:
        pass  # this machine may have none
    except RehostError as error:
        log.warning("nameless images stay in the engine for now: %s", error)

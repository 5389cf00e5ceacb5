"""What the container engine holds of images that are no more."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from docker.client import DockerClient
from docker.errors import APIError, ImageNotFound

from rehost.engine import engine, reason_of

log = logging.getLogger(__name__)

_SOURCE_LABEL = "org.rehost.source.id"  # on every image that Rehost builds
_CONFLICT = 409


def remove_from_engine(engine_id: str, reference: str, named: Mapping[str, Collection[str]]) -> bool:
    """Take the image's name away and, where nothing else names it, the image; False while a container uses it.

    `named` has what the engine calls the images that stay, with their names: two images of one snapshot may be the same
    for the engine. Names that somebody else gave it keep it there. Raises ContainerEngineAway, ContainerEngineFailed.
    """
    with engine("remove the image") as client:
        others = named.get(engine_id, ())
        try:
            if reference not in others and reference in client.images.get(engine_id).tags:
                client.images.remove(reference)
            if not others and not client.images.get(engine_id).tags:
                client.images.remove(engine_id)
        except ImageNotFound:
            return True
        except APIError as error:
            if error.status_code != _CONFLICT:
                raise
            log.info("%s stays in the engine for now: %s", reference, reason_of(error))
            return False
    return True


def remove_untagged(source_ids: Collection[str], engine_ids: Collection[str]) -> list[str]:
    """Remove the nameless images of these sources that are none of `engine_ids`; what the engine called them.

    They are left where an image is built again under its old name. Raises ContainerEngineAway, ContainerEngineFailed.
    """
    gone = []
    with engine("list the images") as client:
        for id in _untagged(client, source_ids):
            if id in engine_ids:
                continue
            try:
                client.images.remove(id)
                gone.append(id)
            except ImageNotFound:
                pass
            except APIError as error:
                if error.status_code != _CONFLICT:
                    raise
                log.info("%s stays in the engine for now: %s", id, reason_of(error))
    return gone


def _untagged(client: DockerClient, source_ids: Collection[str]) -> list[str]:
    found = client.images.list(filters={"dangling": True, "label": _SOURCE_LABEL})
    return [str(image.id) for image in found if not image.tags and image.labels.get(_SOURCE_LABEL) in source_ids]

"""The regions of these settings: named destinations of images."""

from __future__ import annotations

from rehost.errors import RegionNotFound
from rehost.settings import Settings
from rehost.source.inventory import Record


class RegionRecord(Record):
    """A region as the API shows it."""

    id: str
    images: str  # the folder of its disk images
    registry: str | None  # host:port; None: container images stay in the engine
    registry_insecure: bool
    networks: tuple[str, ...] = ()  # no region has networks of its own yet
    max_running_jobs: int


def region(settings: Settings, id: str) -> RegionRecord:
    """Raises RegionNotFound."""
    configured = settings.region(id)
    if configured is None:
        raise RegionNotFound(id=id)
    return RegionRecord(
        id=id,
        images=str(settings.images_path(id)),
        registry=configured.registry,
        registry_insecure=configured.registry_insecure,
        max_running_jobs=configured.max_running_jobs,
    )


def regions(settings: Settings) -> tuple[RegionRecord, ...]:
    """All of them, `local` first, then by name."""
    names = sorted(set(settings.regions) - {"local"})
    return tuple(region(settings, name) for name in ["local", *names])

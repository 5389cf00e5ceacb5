"""The regions of these settings: named destinations of images."""

from __future__ import annotations

from rehost.errors import RegionNotFound
from rehost.settings import Settings
from rehost.source.inventory import Record


class VSwitchRecord(Record):
    """A vSwitch of a VPC, and the Prefect work queue whose workers sit at it."""

    id: str
    work_queue: str


class NetworkRecord(Record):
    """A VPC of a region."""

    vpc_id: str
    vswitches: tuple[VSwitchRecord, ...]


class RegionRecord(Record):
    """A region as the API shows it."""

    id: str
    images: str  # the folder of its disk images
    registry: str | None  # host:port; None: container images stay in the engine
    registry_insecure: bool
    networks: tuple[NetworkRecord, ...]
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
        networks=tuple(
            NetworkRecord(
                vpc_id=vpc_id,
                vswitches=tuple(VSwitchRecord(id=id, work_queue=queue) for id, queue in sorted(vpc.vswitches.items())),
            )
            for vpc_id, vpc in sorted(configured.networks.items())
        ),
        max_running_jobs=configured.max_running_jobs,
    )


def regions(settings: Settings) -> tuple[RegionRecord, ...]:
    """All of them, `local` first, then by name."""
    names = sorted(set(settings.regions) - {"local"})
    return tuple(region(settings, name) for name in ["local", *names])

"""What a plan warns of, as far as the inventory and the job alone can tell."""

from __future__ import annotations

from collections.abc import Iterator

from rehost.catalog.job import JobSpec
from rehost.catalog.records import Source
from rehost.catalog.states import SourceState
from rehost.replication.pass_plan import PassPlan
from rehost.source.inventory import Inventory

# Programs that keep data of their own, by the names of their processes and units.
_DATABASES = {
    "PostgreSQL": ("postgres", "postgresql"),
    "MySQL or MariaDB": ("mysqld", "mariadbd", "mysql", "mariadb"),
    "MongoDB": ("mongod",),
    "Redis": ("redis-server", "redis", "valkey-server", "valkey"),
    "Elasticsearch or OpenSearch": ("elasticsearch", "opensearch"),
    "InfluxDB": ("influxd", "influxdb"),
    "etcd": ("etcd",),
    "Cassandra": ("cassandra",),
    "CouchDB": ("couchdb",),
}


def warnings(spec: JobSpec, source: Source, taken: PassPlan) -> Iterator[str]:
    """Sentences on what a user should know before the copy."""
    inventory = source.inventory
    if source.state is SourceState.IN_USE:
        yield "The source has an unfinished job: this job can be made when that one is finished or deleted."
    if any(volume.mount_point == "/" for volume in taken.in_blocks):
        yield "The root is copied block by block: its network settings, consoles and fstab stay as they are."
    elif any(interface.method == "static" for interface in inventory.interfaces):
        yield "The source has static addresses; the image asks its new network for one, so that both can run."
    if spec.targets.image is not None and inventory.kernel is None:
        yield "No kernel is known on the source; a disk image needs one under /boot."
    blocks = {
        partition.path
        for disk in inventory.disks
        for partition in disk.partitions
        if partition.device in taken.partitions
    }
    for kind in sorted({layer.kind for layer in inventory.layers if not blocks.intersection(layer.members)}):
        yield f"The source uses {kind}; the image has the files of those volumes."
    for disk in inventory.disks:
        if disk.index != 0 and disk.index not in taken.disks and spec.targets.image is not None:
            yield f"Data disk {disk.index} ({disk.path}) is copied to the store, but is in no disk image."
    if inventory.failed_units:
        yield f"Units that fail on the source: {', '.join(inventory.failed_units)}. They may fail in the image too."
    yield from _databases(spec, inventory)


def databases(inventory: Inventory) -> tuple[str, ...]:
    """The databases that run on the server, by what listens and by what units are active."""
    units = (*inventory.active_services, *(listener.unit for listener in inventory.listeners))
    names = {unit.removesuffix(".service").partition("@")[0] for unit in units if unit}
    names |= {listener.process for listener in inventory.listeners if listener.process}
    return tuple(database for database, known in _DATABASES.items() if names & set(known))


def _databases(spec: JobSpec, inventory: Inventory) -> Iterator[str]:
    if spec.hooks.pre_snapshot is not None:
        return
    for name in databases(inventory):
        if spec.consistency.method == "live":
            what = "its files are copied while it writes them, and may not fit together"
        else:
            what = "its files are copied as a power cut would leave them, where the volume can be held still at all"
        yield f"{name} runs on the source and the job has no `hooks.pre_snapshot`: {what}."

"""The build stages: images as functions of the snapshot that is in the store. The source is not asked again."""

from __future__ import annotations

import os
from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from image_builders.container.build import build_container as make_container
from image_builders.container.record import ContainerImage
from image_builders.container.request import ContainerRequest, Credentials
from image_builders.disk.build import build_disk as make_disk
from image_builders.disk.record import DiskImage
from image_builders.disk.regions import Blocks
from image_builders.disk.request import DiskRequest
from rehost.catalog.job import RegistryCredentials
from rehost.errors import RegistryDenied
from rehost.ids import new_id
from rehost.replication.open_store import open_store
from rehost.replication.tree import Tree
from rehost.settings import settings
from tasks.retries import STAGE
from tasks.run_pass import Pass, catalog, snapshot_tree

_GIB = 2**30


@task(name="build-disk", **STAGE)
def build_disk(this: Pass, snapshot_id: str) -> DiskImage:
    """A bootable disk in the formats of the job. Raises every BuildError and StoreError."""
    target = this.job.targets.image
    assert target is not None
    progress = this.progress("build-disk")
    system = this.job.disks.system
    with open_store(settings()) as store:
        snapshot = store.snapshot(snapshot_id)
    with catalog() as opened:
        name = opened.image_name(this.job.id)
    request = DiskRequest(
        image_id=new_id("m"),
        name=name,
        formats=target.formats,
        boot_mode=target.boot_mode or "both",
        size_bytes=system.size_gib * _GIB if system.size_gib else None,
        partition_sizes={p.device: p.size_bytes for p in system.partitions if p.size_bytes},
        data_sizes={d.index: d.size_gib * _GIB for d in this.job.disks.data if d.size_gib},
        left_out=frozenset(d.index for d in this.job.disks.data if not d.include),
        source_id=this.source.id,
        snapshot_id=snapshot_id,
    )
    folder = this.image_folder(request.image_id)
    with open_store(settings()) as store:
        blocks = Blocks(snapshot.regions, store.table_path(snapshot_id, "blocks")) if snapshot.regions else None
        tree = Tree(store.files(snapshot_id), store)
        image = make_disk(tree, snapshot.inventory, request, folder, progress, blocks)
    with catalog() as opened:
        opened.add_image(this.job.id, this.run.id, image, id=request.image_id, kind="disk", name=request.name)
    progress.finish()
    log = get_run_logger()
    for disk in image.disks:
        log.info("%s: %s bytes, sha256 %s", disk.location, f"{disk.file_size:,}", disk.sha256)
    for warning in image.warnings:
        log.warning("%s", warning)
    return image


def container_request(this: Pass, snapshot_id: str, image_id: str) -> ContainerRequest:
    """What the job asks of the container builder, for one snapshot."""
    target = this.job.targets.container_image
    assert target is not None
    with open_store(settings()) as store:
        snapshot = store.snapshot(snapshot_id)
    return ContainerRequest(
        image_id=image_id,
        namespace=target.namespace,
        repository=target.repository,
        tag=target.tag,
        registry=this.region.registry,
        registry_insecure=this.region.registry_insecure,
        title=this.source.name,
        source_id=this.source.id,
        snapshot_id=snapshot_id,
        snapshot_at=snapshot.created_at,
    )


@task(name="build-container", **STAGE)
def build_container(this: Pass, snapshot_id: str) -> ContainerImage:
    """A container image, loaded into the engine. Raises every BuildError and StoreError."""
    progress = this.progress("build-container")
    request = container_request(this, snapshot_id, new_id("m"))
    folder = this.image_folder(request.image_id)
    with open_store(settings()) as store:
        inventory = store.snapshot(snapshot_id).inventory
    with snapshot_tree(snapshot_id) as tree:
        image = make_container(tree, inventory, request, folder, progress)
    _remember(this, image)
    progress.finish()
    get_run_logger().info("%s: %s, %s bytes", image.reference, image.engine_id, f"{image.size:,}")
    for warning in image.warnings:
        get_run_logger().warning("%s", warning)
    return image


def _remember(this: Pass, image: ContainerImage) -> None:
    with catalog() as opened:
        opened.add_image(this.job.id, this.run.id, image, id=image.id, kind="container", name=image.reference)


def remember_published(this: Pass, image: ContainerImage) -> None:
    """The catalog's record of an image that has been pushed."""
    _remember(this, image)


def credentials_of(reference: RegistryCredentials | None, registry: str) -> Credentials | None:
    """The login that the job refers to, read now and kept nowhere. Raises RegistryDenied where it is not there."""
    if reference is None:
        return None
    username = reference.username or os.environ.get(reference.username_env or "", "")
    if reference.password_env:
        password = os.environ.get(reference.password_env, "")
    else:
        try:
            lines = Path(reference.password_file or "").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RegistryDenied(reference=registry, reason=f"the password file cannot be read: {error}") from error
        password = lines[0] if lines else ""
    if not username or not password:
        raise RegistryDenied(reference=registry, reason="the job's credentials name a user or password that is empty")
    return Credentials(username, password)

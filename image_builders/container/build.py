"""Builds a container image from a server's files and loads it into the engine."""

from __future__ import annotations

import errno
import platform
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from docker.errors import ImageLoadError

from image_builders.container.archive import Archive, pieces, write_archive
from image_builders.container.command import (
    Ports,
    Start,
    not_started,
    ports_of,
    start_of,
)
from image_builders.container.fixups import fix_ups
from image_builders.container.layer import Notes, content_size, layer
from image_builders.container.left_out import LeftOut, leave_out
from image_builders.container.record import (
    ARCHIVE_NAME,
    DIFF_NAME,
    RECORD_NAME,
    ContainerImage,
    ImageLayer,
    write_record,
)
from image_builders.container.request import ContainerRequest
from rehost.engine import engine, reason_of, systemd_arguments
from rehost.errors import BuildUnsupported, ContainerEngineFailed, StoreNoSpace
from rehost.progress import Progress
from rehost.replication.manifest import validate
from rehost.replication.tree import Tree, printable
from rehost.source.inventory import Inventory

# Machine names of uname to those of Go, with the variant that the OCI image specification gives them.
_ARCHITECTURES: dict[str, tuple[str, str | None]] = {
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", None),
    "i486": ("386", None),
    "i586": ("386", None),
    "i686": ("386", None),
    "ppc64le": ("ppc64le", None),
    "s390x": ("s390x", None),
    "riscv64": ("riscv64", None),
}
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SPARE_BYTES = 64 << 20  # disk space for headers and metadata beside the content


def build_container(
    tree: Tree, inventory: Inventory, request: ContainerRequest, directory: Path, progress: Progress
) -> ContainerImage:
    """Build the image of this server into `directory`, load it into the engine and return its record.

    `directory` then holds image.tar, image.json and changes.diff; what an earlier try left there is replaced. The same
    tree, inventory and request give the same digests. Progress counts the bytes written and then those loaded. Raises
    BuildUnsupported, ManifestInvalid, StoreNoSpace, StoreChunkMissing, StoreChunkCorrupt, ContainerEngineAway,
    ContainerEngineFailed.
    """
    with engine("say what it is") as client:  # before minutes are spent on an image that could not be loaded
        cgroup_version = str(client.info().get("CgroupVersion", "1"))
    start = start_of(tree, inventory, request.command)
    ports = ports_of(inventory)
    kept, left_out = leave_out(tree)
    image_tree = kept.apply([*fix_ups(kept, start.systemd), *start.changes])
    labels = _labels(inventory, request, start)
    architecture = _ARCHITECTURES.get(inventory.architecture)
    if architecture is None:
        raise BuildUnsupported(
            what="The container image", reason=f"engines have no name for the machine {inventory.architecture[:64]}"
        )
    table = image_tree.table()
    validate(table)
    expected = content_size(table)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RECORD_NAME).unlink(missing_ok=True)  # a record stands beside a whole image alone
    archive_path = directory / ARCHIVE_NAME
    archive_path.unlink(missing_ok=True)
    _check_space(directory, table, expected)

    notes = Notes()
    try:
        archive = write_archive(
            archive_path,
            layer(table, image_tree, notes),
            lambda digest: _config(inventory, request, start, ports, labels, architecture, digest),
            request.reference,
            lambda done: progress(min(done, expected), 2 * expected, "writing the layer"),
        )
        (directory / DIFF_NAME).write_text(image_tree.diff(), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreNoSpace(path=directory) from error
        raise
    engine_id = _load(
        archive_path,
        archive,
        request.reference,
        lambda given: progress(expected + min(given, expected), 2 * expected, "loading it into the engine"),
    )
    image = ContainerImage(
        id=request.image_id,
        name=request.path,
        source_id=request.source_id,
        snapshot_id=request.snapshot_id,
        reference=request.reference,
        digest=engine_id,
        engine_id=engine_id,
        architecture=architecture[0],
        size=archive.layer_size,
        layers=(ImageLayer(digest=archive.layer_digest, size=archive.layer_size),),
        command=start.command,
        systemd=start.systemd,
        stop_signal=start.stop_signal,
        exposed_ports=ports.exposed,
        local_ports=ports.local,
        run_arguments=run_arguments(request.reference, start.systemd, ports.exposed, cgroup_version),
        labels=labels,
        left_out=left_out,
        warnings=_warnings(inventory, start, notes, left_out, architecture[0]),
        created_at=request.snapshot_at,
        location=str(archive_path.absolute()),
        changes=str((directory / DIFF_NAME).absolute()),
    )
    write_record(image)
    progress(2 * expected, 2 * expected, "loaded")
    return image


def _check_space(directory: Path, table: pa.Table, expected: int) -> None:
    free = shutil.disk_usage(directory).free - _SPARE_BYTES
    if expected <= free:
        return
    # Where it is the holes that do not fit, more space is not the answer: the file is named.
    largest = table.slice(int(pc.index(table["size"], pc.max(table["size"])).as_py()), 1).to_pylist()[0]
    hole = largest["size"] - sum(chunk["length"] for chunk in largest["chunks"])
    if expected - hole <= free:
        reason = f"/{printable(largest['path'])} has {hole} bytes of holes, which a layer writes out; exclude it"
        raise BuildUnsupported(what="The container image", reason=reason)
    raise StoreNoSpace(path=directory)


def run_arguments(
    reference: str, systemd: bool, exposed_ports: tuple[str, ...], cgroup_version: str
) -> tuple[str, ...]:
    """The argv that runs the image in the background, each port on the loopback interface of the engine's machine."""
    publish = [argument for port in exposed_ports for argument in ("-p", f"127.0.0.1::{port}")]
    return ("docker", "run", "-d", *(systemd_arguments(cgroup_version) if systemd else ()), *publish, reference)


def _load(path: Path, archive: Archive, reference: str, on_bytes: Callable[[int], None]) -> str:
    """Load the archive; the engine's id of the image, compared with what was written."""
    with engine("load the image") as client:
        try:
            client.images.load(pieces(path, on_bytes))  # type: ignore[arg-type]  # the SDK takes any stream
        except ImageLoadError as error:
            raise ContainerEngineFailed(action="load the image", reason=reason_of(error)) from error
        image = client.images.get(reference)
        engine_id = str(image.id)
        layers = image.attrs.get("RootFS", {}).get("Layers", [])
    if engine_id not in (archive.config_digest, archive.manifest_digest) or layers != [archive.layer_digest]:
        raise ContainerEngineFailed(
            action="load the image", reason=f"it has {engine_id} where {archive.config_digest} was given"
        )
    return engine_id


def _labels(inventory: Inventory, request: ContainerRequest, start: Start) -> dict[str, str]:
    base = inventory.os_name or " ".join(filter(None, (inventory.os_id, inventory.os_version)))
    labels = {
        "org.opencontainers.image.created": _time(request.snapshot_at),
        "org.opencontainers.image.title": request.title,
        "org.opencontainers.image.description": f"The server {inventory.hostname} ({base})",
        "org.opencontainers.image.version": request.tag,
        "org.opencontainers.image.revision": request.snapshot_id,
        "org.rehost.source.id": request.source_id,
        "org.rehost.source.hostname": inventory.hostname,
        "org.rehost.source.os": base,
        "org.rehost.source.kernel": inventory.kernel or "",
        "org.rehost.snapshot.id": request.snapshot_id,
        "org.rehost.init": "systemd" if start.systemd else "services",
    }
    if start.systemd:
        labels["org.rehost.run.cgroup1"] = " ".join(systemd_arguments("1"))
        labels["org.rehost.run.cgroup2"] = " ".join(systemd_arguments("2"))
    return {name: value for name, value in sorted(labels.items()) if value}


def _config(
    inventory: Inventory,
    request: ContainerRequest,
    start: Start,
    ports: Ports,
    labels: dict[str, str],
    architecture: tuple[str, str | None],
    layer_digest: str,
) -> dict[str, Any]:
    """The image's configuration (OCI image specification, config.md)."""
    name, variant = architecture
    created = _time(request.snapshot_at)
    # systemd learns from `container` that it is in one (the container interface of systemd).
    config = {
        "Cmd": list(start.command),
        "Env": [_PATH, "container=docker"],
        "ExposedPorts": {port: {} for port in ports.exposed},
        "Labels": labels,
        "StopSignal": start.stop_signal,
        "WorkingDir": "/",
    }
    return {
        "architecture": name,
        **({"variant": variant} if variant else {}),
        "config": {key: value for key, value in config.items() if value},
        "created": created,
        "history": [{"created": created, "created_by": "rehost", "comment": f"server {inventory.hostname}"}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
    }


def _warnings(
    inventory: Inventory, start: Start, notes: Notes, left_out: tuple[LeftOut, ...], architecture: str
) -> tuple[str, ...]:
    told = [*start.warnings, *not_started(inventory), *notes.warnings]
    if (more := notes.not_carried - len(notes.warnings)) > 0:
        told.append(f"{more} further attributes cannot be carried by a layer.")
    told += [
        f"{group.entries} names that start with .wh. were left out: {group.reason}"
        for group in left_out
        if group.group == "layer-markers"
    ]
    own = _ARCHITECTURES.get(platform.machine(), ("", None))[0]
    if architecture != own:
        told.append(f"The image is for {architecture}; this machine is {own or platform.machine()}.")
    return tuple(told)


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

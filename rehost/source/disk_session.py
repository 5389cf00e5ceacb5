"""A session with a server that is switched off: its disk images, read without mount and without root."""

from __future__ import annotations

import hashlib
import heapq
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from rehost.agent import inventory_files
from rehost.agent.used import MAPS, needs
from rehost.errors import SourceImageDamaged, SourceUnsupported
from rehost.replication.bundles import BUNDLE_BYTES, RAW, Bundle
from rehost.replication.manifest import SCAN_SCHEMA, Chunk, Entry
from rehost.replication.tree import printable
from rehost.source.connect import DiskConnection
from rehost.source.discover import inventory_of
from rehost.source.disk_images import open_image
from rehost.source.disk_layout import Found, Layout, MountedImage, boot_mode, read_layout
from rehost.source.exclude import excluder
from rehost.source.image_tree import ImageTree
from rehost.source.inventory import Inventory, Volume
from rehost.source.session import FileContent, FileRequest, Skipped

_BATCH_ROWS = 8192
_BATCH_BYTES = 8 << 20  # of paths, targets and attributes, as counted
_ASKED_BYTES = 16 << 20  # of content held while `wanted` is asked
_SKIPPED_TOLD = 1000
_NETWORK_DIRECTORIES = (
    b"etc/network/interfaces.d",
    b"etc/netplan",
    b"etc/NetworkManager/system-connections",
    b"etc/systemd/network",
    b"etc/sysconfig/network-scripts",
)


class DiskSession:
    """A Session over disk images. A context manager: leaving it closes them and removes converted copies.

    Raises SourceImageDamaged and SourceUnsupported from every method, ProgramFailed where a conversion failed.
    """

    def __init__(self, connection: DiskConnection) -> None:
        self.host = connection.disks[0]
        self._connection = connection
        self._stack = ExitStack()
        self._found: Layout | None = None
        self._skipped: list[Skipped] = []
        self._delivered = 0
        self._limit = 0

    def __enter__(self) -> DiskSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the images and remove what was converted."""
        self._found = None
        self._stack.close()

    @property
    def _layout(self) -> Layout:
        if self._found is None:
            with ExitStack() as opening:
                images = [opening.enter_context(open_image(Path(disk))) for disk in self._connection.disks]
                self._found = read_layout(images, opening)
                self._stack = opening.pop_all()
        return self._found

    def bytes_on_wire(self) -> int:
        """The bytes of content that were handed over; an image on this machine has no wire."""
        return self._delivered

    def set_bandwidth_limit(self, kbps: int) -> None:
        """Bound what is handed over, in KB/s (1 KB = 1,000 bytes); 0 for no bound."""
        self._limit = kbps * 1000

    def raw_images(self) -> dict[str, Path]:
        """By the path of an inventory's disk: the file of its raw bytes, which is there while the session is open."""
        return {image.shown: image.path for image in self._layout.images}

    def skipped(self) -> Sequence[Skipped]:
        """What the last scan could not take; the first thousand."""
        return tuple(self._skipped)

    # --- inventory --------------------------------------------------------------------------------------------

    def inventory(self) -> Inventory:
        """What the server is, from its tables and its files."""
        layout = self._layout
        tree = layout.tree()
        facts: dict[str, Any] = {
            "running": False,
            "os_release": tree.text(b"etc/os-release") or tree.text(b"usr/lib/os-release"),
            "fstab": tree.text(b"etc/fstab"),
            "hostname": next((line.strip() for line in tree.text(b"etc/hostname").splitlines() if line.strip()), "")[
                :256
            ],
            "kernel": _newest_kernel(tree),
            "architecture": _architecture(tree),
            "boot_mode": boot_mode(layout, tree),
            "init": _init(tree),
            "network_files": _network_files(tree),
            "devices": list(_devices(layout)),
            "mounts": [_mount(mount) for mount in layout.mounts],
        }
        inventory = inventory_of(facts, self.host)
        return inventory.model_copy(update={"disks": tuple(_with_mounts(inventory, layout))})

    # --- scan -------------------------------------------------------------------------------------------------

    def scan(self, volumes: Sequence[Volume], exclude: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Every name on these volumes; see Session.

        A mount of /etc/fstab without a reader is a SourceUnsupported, unless it is excluded or optional there.
        """
        layout = self._layout
        excluded = excluder(exclude)
        self._skipped = []
        self._check_not_read(layout, excluded)
        mounts = {mount.mount_point: mount for mount in layout.mounts}
        taken = [
            (number, volume.mount_point.strip("/").encode(), mounts.get(volume.mount_point))
            for number, volume in enumerate(volumes)
            if not _excluded_with_parents(volume.mount_point, excluded)
        ]
        roots = {path for _, path, _ in taken}
        walks = []
        for number, prefix, mount in taken:
            if mount is None:
                raise SourceUnsupported(source=self.host, reason=f"/{printable(prefix)} is on none of the disk images")
            walks.append(self._entries(number, prefix, mount, roots, excluded))
        yield from _batches(heapq.merge(*walks, key=lambda walked: walked[0].path))

    def _check_not_read(self, layout: Layout, excluded: Callable[[bytes, bool], bool]) -> None:
        for mount in layout.not_read:
            if _excluded_with_parents(mount.mount_point, excluded):
                continue
            if not mount.optional:
                raise SourceUnsupported(
                    source=self.host,
                    reason=f"{mount.reason}: start the server and migrate it over SSH, or exclude {mount.mount_point}",
                )
            self._skipped.append(Skipped(mount.mount_point.strip("/").encode(), mount.reason[:300]))

    def _entries(
        self,
        number: int,
        prefix: bytes,
        mount: MountedImage,
        roots: set[bytes],
        excluded: Callable[[bytes, bool], bool],
    ) -> Iterator[tuple[Entry, int]]:
        def absolute(path: bytes) -> bytes:
            return prefix + b"/" + path if prefix and path else prefix or path

        def skip(path: bytes, is_directory: bool) -> bool:
            return absolute(path) in roots or excluded(absolute(path), is_directory)

        def refused(path: bytes, reason: str) -> None:
            if len(self._skipped) < _SKIPPED_TOLD:
                self._skipped.append(Skipped(absolute(path), reason[:300]))

        device = mount.found.disk << 16 | mount.found.partition.number
        for entry, names in mount.reader.entries_and_names(skip, refused):
            told = Entry(
                path=absolute(entry.path),
                mode=entry.mode,
                uid=entry.uid,
                gid=entry.gid,
                size=entry.size,
                atime_ns=entry.atime_ns,
                mtime_ns=entry.mtime_ns,
                ctime_ns=entry.ctime_ns,
                rdev_major=entry.rdev_major,
                rdev_minor=entry.rdev_minor,
                flags=entry.flags,
                target=entry.target,
                xattrs=entry.xattrs,
                volume=number,
                dev=device,
                ino=entry.ino,
            )
            yield told, names

    # --- content ----------------------------------------------------------------------------------------------

    def read(
        self,
        requests: Iterable[FileRequest],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[FileContent]:
        """The content of these files; see Session."""
        tree = self._layout.tree()
        room = sum(image.size_bytes for image in self._layout.images)
        seen: set[tuple[int, int]] = set()
        held: dict[bytes, bytes] = {}
        held_bytes = 0
        done: list[FileContent] = []
        for request in requests:
            chunks: list[Chunk] = []
            error: str | None = None
            inode = None
            try:
                found = tree.find(request.path)
                if found is None:
                    error = "vanished"
                elif not stat.S_ISREG(found[1].mode):
                    error = "replaced"
                else:
                    image, inode = found
                    first = (id(image), inode.number) not in seen
                    seen.add((id(image), inode.number))
                    for offset, piece in image.pieces(inode):
                        name = hashlib.sha256(piece).digest()
                        chunks.append(Chunk(offset, len(piece), name))
                        room -= len(piece) if first else 0
                        if room < 0:
                            raise SourceImageDamaged(source=self.host, reason="its files hold more than its disks do")
                        if name not in held:
                            held[name] = piece
                            held_bytes += len(piece)
                        if held_bytes >= _ASKED_BYTES:
                            self._hand_over(held, wanted, deliver)
                            held, held_bytes = {}, 0
            except (SourceImageDamaged, SourceUnsupported) as failure:
                if room < 0:
                    raise
                error = f"unreadable: {failure.facts['reason']}"
            if error is not None or inode is None:
                done.append(FileContent(request.index, 0, 0, 0, (), False, error))
            else:
                done.append(
                    FileContent(request.index, inode.size, inode.mtime_ns, inode.ctime_ns, tuple(chunks), False)
                )
            if not held or len(done) >= _BATCH_ROWS:
                self._hand_over(held, wanted, deliver)
                held, held_bytes = {}, 0
                yield from done
                done = []
        self._hand_over(held, wanted, deliver)
        yield from done

    def _hand_over(
        self,
        held: dict[bytes, bytes],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> None:
        names = list(held)
        if not names:
            return
        bundle: list[bytes] = []
        size = 0
        for name in [name for name, want in zip(names, wanted(names), strict=True) if want]:
            if bundle and size + len(held[name]) > BUNDLE_BYTES:
                self._deliver(bundle, held, deliver)
                bundle, size = [], 0
            bundle.append(name)
            size += len(held[name])
        if bundle:
            self._deliver(bundle, held, deliver)

    def _deliver(self, names: Sequence[bytes], held: dict[bytes, bytes], deliver: Callable[[Bundle], None]) -> None:
        began = time.monotonic()
        lengths = tuple(len(held[name]) for name in names)
        deliver(Bundle(tuple(names), lengths, RAW, b"".join(held[name] for name in names)))
        self._delivered += sum(lengths)
        self.hold_back(began, sum(lengths))

    def hold_back(self, began: float, count: int) -> None:
        """Wait until that many bytes may have been handed over since then; a new limit acts at once."""
        while self._limit and (left := began + count / self._limit - time.monotonic()) > 0:
            time.sleep(min(left, 0.25))


def _batches(entries: Iterable[tuple[Entry, int]]) -> Iterator[pa.RecordBatch]:
    batch: list[tuple[Entry, int]] = []
    held = 0
    for entry, names in entries:
        batch.append((entry, names))
        held += len(entry.path) + len(entry.target or b"") + sum(len(n) + len(v) for n, v in entry.xattrs)
        if len(batch) >= _BATCH_ROWS or held >= _BATCH_BYTES:
            yield _batch(batch)
            batch, held = [], 0
    if batch:
        yield _batch(batch)


def _batch(entries: Sequence[tuple[Entry, int]]) -> pa.RecordBatch:
    columns = []
    for column in SCAN_SCHEMA:
        if column.name == "xattrs":
            values: list[Any] = [[{"name": n, "value": v} for n, v in entry.xattrs] for entry, _ in entries]
        elif column.name == "nlink":
            values = [names for _, names in entries]
        else:
            values = [getattr(entry, column.name) for entry, _ in entries]
        columns.append(pa.array(values, column.type))
    return pa.RecordBatch.from_arrays(columns, schema=SCAN_SCHEMA)


def _excluded_with_parents(mount_point: str, excluded: Callable[[bytes, bool], bool]) -> bool:
    parts = [part for part in mount_point.encode().split(b"/") if part]
    return any(excluded(b"/".join(parts[:depth]), True) for depth in range(1, len(parts) + 1))


# --- facts, as the agent would tell them ----------------------------------------------------------------------


def _devices(layout: Layout) -> Iterator[dict[str, Any]]:
    for number, (image, table) in enumerate(zip(layout.images, layout.tables, strict=True)):
        yield {
            "name": f"disk{number}",
            "path": image.shown,
            "number": f"{number}:0",
            "kind": "disk",
            "size_bytes": image.size_bytes,
            "table": table.kind if table else None,
            **(_contents(layout, number) if table is None else {}),
        }
    for found in layout.partitions:
        if found.table is None:
            continue
        yield {
            "name": f"disk{found.disk}p{found.partition.number}",
            "path": found.shown,
            "number": f"{found.disk}:{found.partition.number}",
            "kind": "partition",
            "size_bytes": found.partition.size_bytes,
            "below": [f"disk{found.disk}"],
            "partition": found.partition.number,
            "start": found.partition.start,
            "type": found.partition.type,
            "filesystem": found.filesystem,
            "uuid": found.uuid,
            "label": found.label,
            "needs": _needs(found),
        }


def _contents(layout: Layout, disk: int) -> dict[str, Any]:
    found = next(found for found in layout.partitions if found.disk == disk)
    return {"filesystem": found.filesystem, "uuid": found.uuid, "label": found.label, "needs": _needs(found)}


def _needs(found: Found) -> str | None:
    start = found.partition.start
    if found.filesystem is None or found.filesystem not in MAPS:
        return None
    return needs(lambda offset, length: found.image.read(start + offset, length), found.filesystem) or None


def _mount(mount: MountedImage) -> dict[str, Any]:
    superblock = mount.reader.superblock
    size = superblock.blocks_count * superblock.block_size
    return {
        "mount_point": mount.mount_point,
        "filesystem": mount.found.filesystem,
        "number": f"{mount.found.disk}:{mount.found.partition.number}",
        "root": "/",
        "options": mount.options[:4096],
        "size_bytes": size,
        "used_bytes": size - superblock.free_blocks * superblock.block_size,
    }


def _with_mounts(inventory: Inventory, layout: Layout) -> Iterator[Any]:
    """The disks, with mount points and use also of partitions that have no reader."""
    by_place = {(found.disk, found.partition.number): found for found in layout.partitions}
    order = {image.shown: number for number, image in enumerate(layout.images)}
    for disk in inventory.disks:
        partitions = []
        for partition in disk.partitions:
            found = by_place[order[disk.path], int(partition.device.partition("_")[2])]
            update = {
                "mount_point": layout.mount_points.get(found.shown),
                "used_bytes": partition.used_bytes if partition.used_bytes is not None else found.used_bytes,
            }
            partitions.append(partition.model_copy(update=update))
        yield disk.model_copy(update={"partitions": tuple(partitions)})


def _newest_kernel(tree: ImageTree) -> str | None:
    names = [name for name in tree.listed(b"lib/modules") if name[:1].isdigit()]
    numbers = {name: [int(n) for n in re.findall(rb"\d{1,9}", name)] for name in names}
    return max(names, key=lambda name: numbers[name]).decode("utf-8", "replace")[:256] if names else None


def _architecture(tree: ImageTree) -> str:
    for path in (b"bin/sh", b"usr/bin/env", b"sbin/init"):
        if (machine := inventory_files.elf_machine(tree.read(path, 20))) is not None:
            return machine
    return "unknown"


def _init(tree: ImageTree) -> str | None:
    found = tree.find(b"sbin/init") or tree.find(b"usr/sbin/init")
    if found is not None and stat.S_ISLNK(found[1].mode) and b"systemd" in found[0].target(found[1]):
        return "systemd"
    if tree.exists(b"sbin/openrc"):
        return "openrc"
    return "sysvinit" if found is not None and tree.exists(b"etc/inittab") else None


def _network_files(tree: ImageTree) -> dict[str, str]:
    paths = [b"etc/network/interfaces"]
    paths += [directory + b"/" + name for directory in _NETWORK_DIRECTORIES for name in tree.listed(directory)]
    found = {path.decode("utf-8", "replace"): tree.text(path)[:16_384] for path in paths[:200]}
    return {path: text for path, text in found.items() if text}

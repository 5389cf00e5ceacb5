"""Which partition travels how, by what was asked for; and a scan without its root is still a manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from rehost.replication.block_pass import freezable
from rehost.replication.manifest import SCAN_SCHEMA
from rehost.replication.pass_plan import conflicts, plan_pass, with_places
from rehost.source.inventory import Disk, Inventory, Layer, Partition, Volume

MIB = 1 << 20


def partition(device: str, filesystem: str | None, **more: Any) -> Partition:
    number = int(device.partition("_")[2])
    return Partition(
        path=f"/dev/{device}", device=device, start=number * MIB, size_bytes=MIB, filesystem=filesystem, **more
    )


def volume(mount_point: str, device: str, filesystem: str = "ext4") -> Volume:
    return Volume(mount_point=mount_point, filesystem=filesystem, size_bytes=MIB, used_bytes=1, device=device)


SERVER = Inventory(
    hostname="web",
    os_id="debian",
    architecture="x86_64",
    disks=(
        Disk(
            index=0,
            path="/dev/vda",
            size_bytes=100 * MIB,
            table="gpt",
            partitions=(
                partition("0_1", None),
                partition("0_2", "vfat"),
                partition("0_3", "ext4"),
                partition("0_4", "swap"),
                partition("0_5", "ext4"),
                partition("0_6", "LVM2_member"),
                partition("0_7", "xfs"),
            ),
        ),
        Disk(index=1, path="/dev/vdb", size_bytes=100 * MIB, partitions=(partition("1_1", "ext4"),)),
    ),
    layers=(Layer(kind="lvm", path="/dev/mapper/vg-var", members=("/dev/0_6",)),),
    volumes=(
        volume("/", "/dev/0_3"),
        volume("/boot/efi", "/dev/0_2", "vfat"),
        volume("/data", "/dev/1_1"),
        volume("/home", "/dev/0_5"),
        volume("/srv", "/dev/0_7", "xfs"),
        volume("/var", "/dev/mapper/vg-var"),
    ),
)


def test_without_a_choice_everything_is_files() -> None:
    plan = plan_pass(SERVER, ())
    assert plan.volumes == SERVER.volumes
    assert not plan.disks and not plan.partitions and not plan.in_blocks


def test_a_disk_with_one_partition_in_blocks_keeps_all_of_its_layout() -> None:
    plan = plan_pass(SERVER, {"0_3", "0_6", "0_7"})
    assert plan.disks == (0,)
    assert plan.partitions == {"0_1", "0_2", "0_3", "0_4", "0_6", "0_7"}
    assert [v.mount_point for v in plan.volumes] == ["/data", "/home"]
    assert [v.mount_point for v in plan.in_blocks] == ["/", "/boot/efi", "/srv", "/var"]
    assert not list(conflicts(SERVER.disks[0], SERVER, {"0_3", "0_6", "0_7"}))


def test_what_can_only_come_along_in_blocks_has_to_be_asked_for() -> None:
    found = {p.device: reason for p, reason in conflicts(SERVER.disks[0], SERVER, {"0_3"})}
    assert set(found) == {"0_6", "0_7"}
    assert "LVM" in found["0_6"] and "xfs" in found["0_7"]


def batches(paths: list[bytes], size: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(paths), size):
        some = paths[start : start + size]
        columns = []
        for field in SCAN_SCHEMA:
            empty: Any = [] if field.name == "xattrs" else 0 if pa.types.is_integer(field.type) else None
            columns.append(pa.array(some if field.name == "path" else [empty] * len(some), field.type))
        yield pa.RecordBatch.from_arrays(columns, schema=SCAN_SCHEMA)


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_scan_without_its_root_gets_the_directories_above_its_volumes(size: int) -> None:
    paths = [b"a/b/c", b"a/b/c/x", b"home", b"home/me", b"srv/data", b"srv/data/old", b"z"]
    volumes = [volume(f"/{point}", "x") for point in ("srv/data", "home", "a/b/c", "home/me/too", "z")]
    told = [path for batch in with_places(batches(paths, size), volumes) for path in batch["path"].to_pylist()]
    assert told == sorted([*paths, b"", b"a", b"a/b", b"srv"])


@pytest.mark.parametrize("size", [1, 100])
def test_a_scan_with_its_root_stays_as_it_is_and_one_of_nothing_has_the_root_alone(size: int) -> None:
    paths = [b"", b"a", b"home"]
    told = [
        path for batch in with_places(batches(paths, size), [volume("/", "x")]) for path in batch["path"].to_pylist()
    ]
    assert told == paths
    (only,) = with_places([], [])
    assert only["path"].to_pylist() == [b""] and only["mode"].to_pylist() == [0o040755]
    assert only.schema.equals(SCAN_SCHEMA)


def test_every_filesystem_is_frozen_once_and_none_that_cannot_be() -> None:
    subvolumes = (volume("/x", "/dev/1_2", "btrfs"), volume("/x/y", "/dev/1_2", "btrfs"))
    assert freezable((*SERVER.volumes, *subvolumes)) == ["/", "/data", "/home", "/srv", "/var", "/x"]

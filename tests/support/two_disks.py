"""The inventory of a made-up server with two disks, for tests of what may be asked of a job."""

from __future__ import annotations

from typing import Any

from rehost.source.inventory import Disk, Inventory, Partition, Volume

GIB = 1 << 30


def server() -> Inventory:
    """A system disk of 40 GiB: root of 30 with 24 used, XFS of 10 with 1 used; a data disk of 100 GiB with 60 used."""

    def partition(device: str, gib: int, used_gib: int | None, **more: Any) -> Partition:
        return Partition(
            path=f"/dev/{device}",
            device=device,
            start=1 << 20,
            size_bytes=gib * GIB,
            used_bytes=None if used_gib is None else used_gib * GIB,
            **more,
        )

    return Inventory(
        hostname="web1.example.org",
        os_id="debian",
        architecture="x86_64",
        disks=(
            Disk(
                index=0,
                path="/dev/vda",
                size_bytes=40 * GIB,
                partitions=(
                    partition("0_1", 30, 24, filesystem="ext4", can_block=True),
                    partition("0_2", 10, 1, filesystem="xfs", cannot_block_reason="it is xfs"),
                ),
            ),
            Disk(
                index=1,
                path="/dev/vdb",
                size_bytes=100 * GIB,
                partitions=(partition("1_1", 100, 60, filesystem="xfs", can_block=True),),
            ),
        ),
        volumes=(
            Volume(mount_point="/", filesystem="ext4", size_bytes=30 * GIB, used_bytes=24 * GIB, device="/dev/0_1"),
        ),
    )

"""The table, the sizes, the swap header and the sums of sparse files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from image_builders.disk import formats, gpt
from image_builders.disk.layout import ESP_BYTES, MIB, lay_out
from image_builders.disk.request import DiskRequest
from image_builders.disk.selection import select
from image_builders.disk.swap import write_swap
from rehost.disk_formats import DiskFormat
from rehost.errors import BuildDiskTooSmall, BuildTableUnreadable
from rehost.run import find
from rehost.source.inventory import Disk, Inventory, Partition, Volume

GIB = 1 << 30
SIZE = 64 * MIB
TABLE = gpt.Table(
    SIZE,
    uuid.UUID("d0000000-0000-4000-8000-000000000001"),
    (
        gpt.GptEntry(
            1,
            MIB,
            MIB,
            uuid.UUID("21686148-6449-6e6f-744e-656564454649"),
            uuid.uuid5(uuid.NAMESPACE_DNS, "a"),
            "BIOS boot",
        ),
        gpt.GptEntry(
            2,
            2 * MIB,
            61 * MIB,
            uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4"),
            uuid.uuid5(uuid.NAMESPACE_DNS, "b"),
            "root",
        ),
    ),
)


def written(path: Path) -> Path:
    with path.open("x+b") as file:
        file.truncate(SIZE)
        gpt.write_table(file, TABLE, b"\xeb\xfe")
    return path


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    with written(tmp_path / "disk").open("rb") as file:
        assert gpt.read_table(file, SIZE) == TABLE


@pytest.mark.parametrize("at", [510, 512 + 20, 1024 + 5, SIZE - 512 + 60, SIZE - 33 * 512 + 40])
def test_a_flipped_byte_in_the_table_is_seen(tmp_path: Path, at: int) -> None:
    path = written(tmp_path / "disk")
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
        with pytest.raises(BuildTableUnreadable):
            gpt.read_table(file, SIZE)


@pytest.mark.skipif(find("sgdisk") is None or find("sfdisk") is None, reason="sgdisk and sfdisk are not installed")
def test_other_programs_read_the_same_table(tmp_path: Path) -> None:
    path = written(tmp_path / "disk")
    judged = subprocess.run(["sgdisk", "-v", path], capture_output=True, text=True, check=True)
    assert "No problems found" in judged.stdout
    told = json.loads(subprocess.run(["sfdisk", "-J", path], capture_output=True, check=True).stdout)["partitiontable"]
    assert told["id"].lower() == str(TABLE.disk_guid)
    for partition, entry in zip(told["partitions"], TABLE.entries, strict=True):
        assert partition["start"] * 512 == entry.start and partition["size"] * 512 == entry.size_bytes
        assert partition["type"].lower() == str(entry.type_guid) and partition["uuid"].lower() == str(entry.guid)
        assert partition["name"] == entry.name


@pytest.mark.skipif(find("blkid") is None, reason="blkid is not installed")
def test_blkid_sees_the_swap_area(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    own = uuid.uuid4()
    with path.open("x+b") as file:
        file.truncate(8 * MIB)
        write_swap(file, 0, 8 * MIB, own, "swap0")
    told = subprocess.run(["blkid", "-p", "-o", "export", path], capture_output=True, text=True, check=True).stdout
    assert f"UUID={own}" in told and "TYPE=swap" in told and "LABEL=swap0" in told


# --- sizes ----------------------------------------------------------------------------------------------------


def server(disk_bytes: int | None) -> Inventory:
    """/home of 4 GiB, swap of 1 GiB and the root, on one disk; or a tree without a disk."""
    partitions = (
        Partition(path="/dev/vda1", device="0_1", start=MIB, size_bytes=4 * GIB, filesystem="ext4"),
        Partition(
            path="/dev/vda2", device="0_2", start=5 * GIB, size_bytes=GIB, filesystem="swap", uuid=str(uuid.UUID(int=7))
        ),
        Partition(path="/dev/vda3", device="0_3", start=6 * GIB, size_bytes=4 * GIB, filesystem="ext4"),
    )
    known = disk_bytes is not None
    volumes = (
        Volume(mount_point="/", filesystem="ext4", size_bytes=4 * GIB, used_bytes=GIB, device="/dev/vda3"),
        Volume(mount_point="/home", filesystem="ext4", size_bytes=4 * GIB, used_bytes=GIB, device="/dev/vda1"),
    )
    return Inventory(
        hostname="web",
        os_id="debian",
        architecture="x86_64",
        disks=(Disk(index=0, path="/dev/vda", size_bytes=disk_bytes or 0, partitions=partitions),) if known else (),
        volumes=volumes if known else (Volume(mount_point="/", filesystem="ext4", size_bytes=0, used_bytes=0),),
    )


def sizes(inventory: Inventory, needed: dict[str, int], **fields: object) -> dict[str, int]:
    request = DiskRequest("m-1", "web", **fields)  # type: ignore[arg-type]
    layout, _ = lay_out(select(inventory, request), needed, inventory, request)
    ends = MIB
    for partition in layout.partitions:
        assert partition.start == ends and partition.start % MIB == 0 == partition.size_bytes % MIB
        ends = partition.start + partition.size_bytes
    assert ends <= layout.size_bytes - MIB and layout.size_bytes % MIB == 0
    named = {p.filesystem.mount_point if p.filesystem else p.role: p.size_bytes for p in layout.partitions}
    return {**named, "disk": layout.size_bytes}


NEEDED = {"/": GIB, "/home": GIB}


def test_partitions_keep_their_sizes_and_the_root_takes_the_rest() -> None:
    got = sizes(server(10 * GIB), NEEDED)
    assert got["disk"] == 10 * GIB and got["/home"] == 4 * GIB and got["swap"] == GIB and got["esp"] == ESP_BYTES
    assert got["/"] == 10 * GIB - 5 * GIB - ESP_BYTES - 3 * MIB


def test_a_larger_disk_grows_the_root_and_asked_sizes_are_kept() -> None:
    got = sizes(server(10 * GIB), NEEDED, size_bytes=20 * GIB, partition_sizes={"0_1": 2 * GIB, "0_2": 512 * MIB})
    assert got["/home"] == 2 * GIB and got["swap"] == 512 * MIB and got["/"] > 17 * GIB


def test_a_smaller_disk_takes_from_what_is_not_needed() -> None:
    got = sizes(server(10 * GIB), NEEDED, size_bytes=4 * GIB)
    assert got["/"] >= GIB and GIB <= got["/home"] < 4 * GIB and got["swap"] < GIB


def test_without_a_known_disk_the_size_follows_from_the_content() -> None:
    assert sizes(server(None), {"/": GIB})["disk"] == 4 * GIB
    assert sizes(server(None), {"/": 10 * GIB})["disk"] == 14 * GIB


@pytest.mark.parametrize(
    "fields", [{"size_bytes": 2 * GIB}, {"partition_sizes": {"0_1": 512 * MIB}}, {"partition_sizes": {"0_1": 9 * GIB}}]
)
def test_what_does_not_fit_is_refused_with_figures(fields: dict[str, object]) -> None:
    with pytest.raises(BuildDiskTooSmall) as caught:
        sizes(server(10 * GIB), NEEDED, **fields)
    assert caught.value.facts["needed_bytes"] > caught.value.facts["size_bytes"] > 0


def test_the_same_inputs_give_the_same_ids_whatever_the_image_is_called() -> None:
    first, second = (DiskRequest(f"m-{n}", f"name-{n}") for n in (1, 2))
    inventory = server(10 * GIB)
    assert lay_out(select(inventory, first), NEEDED, inventory, first) == lay_out(
        select(inventory, second), NEEDED, inventory, second
    )


# --- formats --------------------------------------------------------------------------------------------------


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(40 * MIB)
        for at in (0, 5 * MIB + 17, 39 * MIB):
            file.seek(at)
            file.write(os.urandom(200_000))
    return path


@pytest.mark.parametrize("size", [0, 1, 5 * MIB + 3])
def test_the_sum_of_a_sparse_file_is_that_of_its_bytes(tmp_path: Path, size: int) -> None:
    path = sparse(tmp_path / "raw")
    os.truncate(path, 20 * MIB + size)
    done: list[int] = []
    assert formats.sha256_of(path, done.append) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sum(done) == 20 * MIB + size


@pytest.mark.skipif(find("qemu-img") is None, reason="qemu-img is not installed")
@pytest.mark.parametrize("wanted", ["qcow2", "qcow2-plain", "vhd", "vhd-dynamic"])
def test_a_converted_disk_has_the_same_size_and_content(tmp_path: Path, wanted: DiskFormat) -> None:
    raw, target, back = sparse(tmp_path / "raw"), tmp_path / "made", tmp_path / "back"
    parts: list[float] = []
    formats.convert(raw, target, wanted, parts.append)
    assert parts == sorted(parts) and parts[-1] == 1.0
    assert formats.virtual_size(target, wanted) == 40 * MIB
    kind = formats.qemu_format(wanted)
    subprocess.run(["qemu-img", "convert", "-f", kind, "-O", "raw", target, back], check=True)
    assert back.read_bytes() == raw.read_bytes()
    if wanted == "vhd":
        content = target.read_bytes()
        assert content[: 40 * MIB] == raw.read_bytes() and content[40 * MIB :][:8] == b"conectix"
        assert len(content) == 40 * MIB + 512 and int.from_bytes(content[-512 + 60 : -512 + 64], "big") == 2  # fixed
    elif wanted == "vhd-dynamic":
        content = target.read_bytes()
        assert content[:8] == content[-512:-504] == b"conectix" and len(content) < 20 * MIB
        # Its size is told to the byte, not rounded to whole cylinders; type 3 is dynamic.
        assert int.from_bytes(content[48:56], "big") == 40 * MIB and int.from_bytes(content[60:64], "big") == 3
    elif wanted == "qcow2-plain":
        head = target.read_bytes()[:8]
        assert head == b"QFI\xfb" + (2).to_bytes(4, "big")  # version 2 has no field for features
        assert target.stat().st_blocks * 512 < 20 * MIB
        mapped = json.loads(subprocess.run(["qemu-img", "map", "--output=json", target], capture_output=True).stdout)
        assert not any(extent.get("compressed") for extent in mapped)
    else:
        told = json.loads(
            subprocess.run(["qemu-img", "info", "--output=json", target], capture_output=True, check=True).stdout
        )
        assert told["format-specific"]["data"]["compression-type"] == "zstd"

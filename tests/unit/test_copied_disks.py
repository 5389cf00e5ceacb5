"""Disks that are copied block by block: every byte at its place, the table fitted to the disk, files beside blocks."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_builders.disk.build import build_disk
from image_builders.disk.gpt_end import settle_table
from image_builders.disk.record import DiskImage
from image_builders.disk.regions import Blocks, write_regions
from image_builders.disk.request import DiskRequest
from rehost.errors import BuildDiskTooSmall, BuildNoBootLoader, BuildTableUnreadable, ManifestInvalid
from rehost.replication.manifest import BLOCKS_SCHEMA
from rehost.replication.snapshots import Region
from rehost.replication.tree import Put, Tree
from rehost.run import find
from rehost.source.inventory import Inventory
from tests.support.block_snapshots import Together, blocks_of, digest_of, inventory_of_disks, regions_of, tree_over
from tests.support.ext4_images import Chunks
from tests.support.ext4_judge import read_filesystem
from tests.support.small_server import BOOT_UUID, MIB, server, server_tree

needs_tools = pytest.mark.skipif(
    any(find(p) is None for p in ("qemu-img", "grub-mkimage", "mformat", "sgdisk", "sfdisk", "e2fsck", "mkfs.ext4"))
    or not Path("/usr/lib/grub/i386-pc/moddep.lst").is_file()
    or not Path("/usr/lib/grub/x86_64-efi/moddep.lst").is_file(),
    reason="qemu-img, mtools, gdisk, fdisk, e2fsprogs, grub-pc-bin or grub-efi-amd64-bin is not installed",
)
REQUEST = DiskRequest("m-1", "web", formats=("raw",))
SIZE = 400 * MIB


def table_file(path: Path, rows: list[tuple[int, int, bytes, bytes]]) -> Path:
    arrays = [pa.array(v, f.type) for v, f in zip(zip(*rows, strict=True), BLOCKS_SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=BLOCKS_SCHEMA), path)
    return path


# --- regions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_random_regions_come_back_byte_for_byte_and_holes_stay_holes(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    source, made = tmp_path / "source", tmp_path / "made"
    size = draw.randrange(6 * MIB, 24 * MIB) // 512 * 512
    with source.open("wb") as file:
        file.truncate(size)
        for _ in range(draw.randrange(1, 40)):
            file.seek(draw.randrange(size - 70_000))
            file.write(draw.randbytes(draw.randrange(1, 70_000)))
    regions, at = [], 0
    while at < size:
        length = min(draw.randrange(1, 3 * MIB) // 512 * 512 + 512, size - at)
        block_bytes = draw.choice([4096, 65_536, MIB])
        region = Region(disk=0, start=at, size_bytes=length, used_by="nonzero", used_bytes=0, block_bytes=block_bytes)
        regions.append(region)
        at += length
    draw.shuffle(regions)
    chunks = Chunks()
    blocks = blocks_of([source], regions, tmp_path / "blocks", chunks)
    told: list[int] = []
    with made.open("w+b") as target:
        target.truncate(size)
        write_regions(target, blocks, range(len(regions)), chunks, told.append)
    assert digest_of(made) == digest_of(source)
    assert sum(told) == sum(region.used_bytes for region in blocks.regions)
    holes = sum(r.size_bytes - r.used_bytes for r in blocks.regions)
    assert made.stat().st_blocks * 512 <= size - holes + 8192 * len(told)


def test_only_the_regions_that_are_asked_for_are_written(tmp_path: Path) -> None:
    chunks = Chunks()
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(MIB))
    regions = [
        Region(disk=0, start=n * MIB // 4, size_bytes=MIB // 4, used_by="nonzero", used_bytes=0) for n in range(4)
    ]
    blocks = blocks_of([source], regions, tmp_path / "blocks", chunks)
    with (tmp_path / "made").open("w+b") as target:
        target.truncate(MIB)
        write_regions(target, blocks, (1, 3), chunks, lambda count: None)
    made, quarter = (tmp_path / "made").read_bytes(), MIB // 4
    for n in range(4):
        wanted = source.read_bytes()[n * quarter : (n + 1) * quarter] if n in (1, 3) else bytes(quarter)
        assert made[n * quarter : (n + 1) * quarter] == wanted


REGION = Region(disk=0, start=0, size_bytes=100_000, used_by="nonzero", used_bytes=0)
LAST_BYTES = 100_000 - 65_536
BAD_TABLES = {
    "a block beyond the region": [(0, 2, 65_536)],
    "a region that is not there": [(1, 0, 65_536)],
    "rows out of order": [(0, 1, LAST_BYTES), (0, 0, 65_536)],
    "a block twice": [(0, 0, 65_536), (0, 0, 65_536)],
    "a last block that is too long": [(0, 1, 65_536)],
    "a block that is too short": [(0, 0, 65_535)],
}


@pytest.mark.parametrize("at_once", [1, 1000])
@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_blocks_table_that_breaks_its_rules_is_refused(
    tmp_path: Path, name: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("image_builders.disk.regions._ROWS_A_BATCH", at_once)
    chunks = Chunks()
    rows = [(r, b, bytes(16), chunks.put(0, b"x" * length).sha256) for r, b, length in BAD_TABLES[name]]
    blocks = Blocks((REGION,), table_file(tmp_path / "blocks", rows))
    with (tmp_path / "made").open("w+b") as target, pytest.raises(ManifestInvalid):
        target.truncate(100_000)
        write_regions(target, blocks, (0,), chunks, lambda count: None)


# --- the end of a GPT -------------------------------------------------------------------------------------------


def gpt_disk(path: Path, size: int = 64 * MIB, script: str = "") -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    script = script or "label: gpt\nsize=10MiB, attrs=LegacyBIOSBootable, name=one\nsize=20MiB, name=zwei\n"
    subprocess.run(["sfdisk", "-q", str(path)], input=script, text=True, check=True)
    return path


def entries_of(path: Path) -> str:
    told = subprocess.run(["sfdisk", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    return "\n".join(line.partition(" : ")[2] for line in told.splitlines() if " : " in line)


def judged(path: Path) -> str:
    told = subprocess.run(["sgdisk", "-v", str(path)], capture_output=True, text=True, check=False).stdout
    assert "No problems found" in told, told
    subprocess.run(["sfdisk", "-V", str(path)], capture_output=True, text=True, check=True)
    return told


@needs_tools
@pytest.mark.parametrize("grown", [0, 512, MIB, 64 * MIB, 900 * MIB + 512])
@pytest.mark.parametrize("table_length", [128, 256])
def test_a_gpt_reaches_to_the_end_of_a_larger_disk(tmp_path: Path, grown: int, table_length: int) -> None:
    header = f"label: gpt\ntable-length: {table_length}\n"
    disk = gpt_disk(tmp_path / "disk", script=header + "size=10MiB, attrs=LegacyBIOSBootable, name=one\nname=zwei\n")
    before = entries_of(disk)
    with disk.open("r+b") as target:
        target.truncate(64 * MIB + grown)
        assert settle_table(target, 64 * MIB + grown) is (grown > 0)
    judged(disk)
    assert entries_of(disk) == before and "LegacyBIOSBootable" in before
    sector = disk.read_bytes()[64 * MIB - 512 : 64 * MIB - 504] if grown > MIB else b""
    assert sector != b"EFI PART"


@needs_tools
@pytest.mark.parametrize("lost", ["primary", "backup"])
def test_a_copy_of_the_table_that_is_broken_is_made_from_the_other(tmp_path: Path, lost: str) -> None:
    disk = gpt_disk(tmp_path / "disk")
    before = entries_of(disk)
    with disk.open("r+b") as target:
        target.seek(512 + 56 if lost == "primary" else 64 * MIB - 512 + 56)
        target.write(b"\xff" * 16)
        assert settle_table(target, 64 * MIB)
    judged(disk)
    assert entries_of(disk) == before


@needs_tools
def test_a_table_that_is_broken_twice_is_an_error_and_an_mbr_is_left_alone(tmp_path: Path) -> None:
    disk = gpt_disk(tmp_path / "disk")
    with disk.open("r+b") as target:
        for at in (600, 64 * MIB - 512 + 56):
            target.seek(at if at != 600 else 512 + 60)
            target.write(b"\xff" * 8)
        with pytest.raises(BuildTableUnreadable):
            settle_table(target, 64 * MIB)
    old = gpt_disk(tmp_path / "old", script="label: dos\nsize=10MiB, bootable\nsize=5MiB\n")
    before = digest_of(old)
    with old.open("r+b") as target:
        assert not settle_table(target, 64 * MIB)
    assert digest_of(old) == before


# --- whole images -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk of a small server: GRUB for both firmwares, /boot, swap no, root, as our builder lays one out."""
    folder = tmp_path_factory.mktemp("source")
    tree = server_tree().apply([Put(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")])
    built = build_disk(tree, server(), replace(REQUEST, size_bytes=SIZE), folder)
    return Path(built.disks[0].location)


@pytest.fixture(scope="module")
def inventory(source: Path) -> Inventory:
    return known(inventory_of_disks(source))


def known(inventory: Inventory) -> Inventory:
    """Its programs, by which the architecture is told, are none."""
    return inventory.model_copy(update={"architecture": "x86_64"})


def copied(source: Path, inventory: Inventory, folder: Path, request: DiskRequest, *others: Path) -> DiskImage:
    chunks = Chunks()
    regions = [region for disk in inventory.disks for region in regions_of(disk)]
    blocks = blocks_of([source, *others], regions, folder / "blocks.parquet", chunks)
    return build_disk(tree_over(chunks), inventory, request, folder / "image", blocks=blocks)


@needs_tools
def test_a_disk_in_blocks_is_the_source_s_disk_to_the_last_byte(
    source: Path, inventory: Inventory, tmp_path: Path
) -> None:
    image = copied(source, inventory, tmp_path, replace(REQUEST, formats=("raw", "qcow2")))
    raw = Path(image.disks[0].location)
    assert digest_of(raw) == digest_of(source) == image.disks[0].sha256
    assert raw.stat().st_blocks <= source.stat().st_blocks + 2048
    assert image.boot_modes == ("bios", "uefi")
    assert [p.role for p in image.partitions] == ["bios", "esp", "filesystem", "filesystem"]
    assert image.partitions[-1].mount_point == "/" and image.partitions[-1].source_device == "0_4"
    assert image.fixups == () and Path(image.fixups_diff).read_text() == ""
    assert DiskImage.model_validate_json((tmp_path / "image" / "image.json").read_text()) == image
    told = subprocess.run(["sgdisk", "-p", str(raw)], capture_output=True, text=True, check=True).stdout
    assert image.disk_guid.upper() in told


@needs_tools
def test_a_larger_disk_has_its_table_at_its_end_and_a_smaller_one_is_refused(
    source: Path, inventory: Inventory, tmp_path: Path
) -> None:
    image = copied(source, inventory, tmp_path, replace(REQUEST, size_bytes=SIZE + 300 * MIB))
    raw = Path(image.disks[0].location)
    assert image.disks[0].virtual_size == SIZE + 300 * MIB
    judged(raw)
    assert entries_of(raw) == entries_of(source)
    with pytest.raises(BuildDiskTooSmall, match="disk 0"):
        copied(source, inventory, tmp_path, replace(REQUEST, size_bytes=SIZE - MIB))


@needs_tools
def test_a_firmware_that_is_asked_for_and_not_there_is_an_error(
    source: Path, inventory: Inventory, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copy(source, bare)
    esp = next(p for p in inventory.disks[0].partitions if p.filesystem == "vfat")
    subprocess.run(["mdeltree", "-i", f"{bare}@@{esp.start}", "::/EFI"], check=True)
    image = copied(bare, inventory, tmp_path, REQUEST)
    assert image.boot_modes == ("bios",) and any("no boot loader" in warning for warning in image.warnings)
    with pytest.raises(BuildNoBootLoader):
        copied(bare, inventory, tmp_path, replace(REQUEST, boot_mode="uefi"))
    assert not list((tmp_path / "image").iterdir())


@needs_tools
def test_a_loader_that_only_the_old_firmware_knew_is_put_where_every_firmware_looks(
    source: Path, inventory: Inventory, tmp_path: Path
) -> None:
    vendor = tmp_path / "vendor"
    shutil.copy(source, vendor)
    esp = next(p for p in inventory.disks[0].partitions if p.filesystem == "vfat")
    place = f"{vendor}@@{esp.start}"
    subprocess.run(["mmd", "-i", place, "::/EFI/debian"], check=True)
    subprocess.run(["mcopy", "-i", place, "::/EFI/BOOT/BOOTX64.EFI", str(tmp_path / "loader")], check=True)
    subprocess.run(["mcopy", "-i", place, str(tmp_path / "loader"), "::/EFI/debian/grubx64.efi"], check=True)
    subprocess.run(["mdeltree", "-i", place, "::/EFI/BOOT"], check=True)
    image = copied(vendor, inventory, tmp_path, REQUEST)
    assert image.boot_modes == ("bios", "uefi")
    assert [fixup.name for fixup in image.fixups] == ["removable loader"]
    assert "/EFI/debian/grubx64.efi" in image.fixups[0].about
    back = ["mtype", "-i", f"{image.disks[0].location}@@{esp.start}", "::/EFI/BOOT/BOOTX64.EFI"]
    assert subprocess.run(back, capture_output=True, check=True).stdout == (tmp_path / "loader").read_bytes()


@needs_tools
def test_a_copied_root_is_looked_at_and_what_is_not_set_up_is_told(
    source: Path, inventory: Inventory, tmp_path: Path
) -> None:
    told = "\n".join(copied(source, inventory, tmp_path, REQUEST).warnings)
    assert told == ""
    root = inventory.disks[0].partitions[-1]
    boot = inventory.disks[0].partitions[-2]
    for place, edits, words in (
        (root, ["rm /etc/fstab", "write fstab /etc/fstab"], "/etc/fstab names /dev/sda3"),
        (boot, ["rm /grub/grub.cfg"], "no console on the serial port"),
        (
            root,
            ["mkdir /etc/netplan", "write plan /etc/netplan/x.yaml", "mkdir /usr/sbin", "write plan /usr/sbin/netplan"],
            "netplan",
        ),
    ):
        disk = tmp_path / "edited"
        shutil.copy(source, disk)
        (tmp_path / "fstab").write_text("/dev/sda3 / ext4 defaults 0 1\n")
        (tmp_path / "plan").write_text("network: {version: 2}\n")
        (tmp_path / "edits").write_text("\n".join(edits) + "\n")
        argv = ["debugfs", "-w", "-f", "edits", f"{disk.name}?offset={place.start}"]
        subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)
        told = "\n".join(copied(disk, inventory, tmp_path, REQUEST).warnings)
        assert words in told, told


@needs_tools
def test_files_beside_blocks_get_their_partition_and_the_fix_ups_that_are_possible(
    source: Path, inventory: Inventory, tmp_path: Path
) -> None:
    """The root was copied as files, everything else, /boot among it, block by block."""
    root = inventory.disks[0].partitions[-1]
    chunks = Chunks()
    blocks = blocks_of([source], list(regions_of(inventory.disks[0], {root.device})), tmp_path / "blocks", chunks)

    files = server_tree()
    table = files.table()
    inside = [not p.as_py().startswith(b"boot/") for p in table["path"]]
    image = build_disk(
        Tree(table.filter(pa.array(inside)), Together(chunks, files)),
        inventory,
        REQUEST,
        tmp_path / "image",
        blocks=blocks,
    )
    raw = Path(image.disks[0].location)
    judged(raw)
    for at, size in ((0, root.start), (root.start + root.size_bytes, SIZE - root.start - root.size_bytes)):
        with raw.open("rb") as made, source.open("rb") as old:
            made.seek(at)
            old.seek(at)
            assert made.read(size) == old.read(size)
    found = read_filesystem(raw, root.start, root.size_bytes)
    assert b"etc/fstab" in found and b"var/big" in found and b"boot/grub" not in found
    tune = subprocess.run(["blkid", "-p", "-O", str(root.start), str(raw)], capture_output=True, text=True, check=True)
    assert root.uuid is not None and root.uuid in tune.stdout
    check = subprocess.run(["e2fsck", "-fn", f"{raw}?offset={root.start}"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    assert {fixup.name for fixup in image.fixups} >= {"fstab"}
    assert any("GRUB's menu is the source's" in warning for warning in image.warnings)
    assert BOOT_UUID in str([p.uuid for p in image.partitions])
    # What does not fit the partition as it is, does not get a larger one.
    small = [
        p if p.device != root.device else p.model_copy(update={"size_bytes": 4 * MIB})
        for p in inventory.disks[0].partitions
    ]
    disk = inventory.disks[0].model_copy(update={"partitions": tuple(small)})
    with pytest.raises(BuildDiskTooSmall, match="partition 0_4"):
        build_disk(
            Tree(table.filter(pa.array(inside)), Together(chunks, files)),
            inventory.model_copy(update={"disks": (disk,)}),
            REQUEST,
            tmp_path / "image",
            blocks=blocks,
        )


@needs_tools
def test_data_disks_in_blocks_are_further_disks_of_the_image(
    source: Path, inventory: Inventory, tmp_path: Path
) -> None:
    data = gpt_disk(tmp_path / "data", 96 * MIB)
    with data.open("r+b") as file:
        file.seek(20 * MIB)
        file.write(random.Random(7).randbytes(3 * MIB + 5))
    both = known(inventory_of_disks(source, data))
    assert [disk.index for disk in both.disks] == [0, 1]
    request = replace(REQUEST, formats=("qcow2", "raw"), data_sizes={1: 128 * MIB})
    image = copied(source, both, tmp_path, request, data)
    assert [(d.index, d.role, d.format) for d in image.disks] == [
        (0, "system", "qcow2"),
        (0, "system", "raw"),
        (1, "data", "qcow2"),
        (1, "data", "raw"),
    ]
    raw = Path(image.disks[-1].location)
    judged(raw)
    assert entries_of(raw) == entries_of(data) and image.disks[-1].virtual_size == 128 * MIB
    assert raw.read_bytes()[MIB : 95 * MIB] == data.read_bytes()[MIB : 95 * MIB]
    # The same beside a system disk that is laid out anew for its files.
    chunks = Chunks()
    blocks = blocks_of([source, data], list(regions_of(both.disks[1])), tmp_path / "blocks", chunks)
    files = server_tree()

    mixed = server().model_copy(update={"disks": (*server().disks, both.disks[1])})
    made = build_disk(
        Tree(files.table(), Together(chunks, files)),
        mixed,
        replace(REQUEST, size_bytes=SIZE),
        tmp_path / "two",
        blocks=blocks,
    )
    assert [disk.index for disk in made.disks] == [0, 1]
    assert digest_of(Path(made.disks[1].location)) == digest_of(data)
    assert "fstab" in {fixup.name for fixup in made.fixups}

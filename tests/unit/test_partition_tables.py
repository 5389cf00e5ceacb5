"""Partition tables as sgdisk and sfdisk write them, and tables that no tool writes."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from rehost.errors import SourceImageDamaged, SourceUnsupported
from rehost.source.partition_tables import BIOS_BOOT_TYPE, ESP_TYPE, PartitionTable, read_table

MIB = 1 << 20
needs_sgdisk = pytest.mark.skipif(shutil.which("sgdisk") is None, reason="sgdisk is not installed")
needs_sfdisk = pytest.mark.skipif(shutil.which("sfdisk") is None, reason="sfdisk is not installed")


def table_of(content: bytes | bytearray) -> PartitionTable | None:
    return read_table(lambda offset, length: bytes(content[offset : offset + length]), len(content), "the image")


def gpt(tmp_path: Path) -> bytearray:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(20 * MIB)
    argv = [
        "sgdisk",
        "-n",
        "1:2048:+1M",
        "-t",
        "1:ef02",
        "-n",
        "2:0:+4M",
        "-t",
        "2:ef00",
        "-n",
        "5:0:0",
        "-c",
        "5:Wurzel ö",
    ]
    subprocess.run([*argv, "-u", "5:11111111-2222-3333-4444-555555555555", str(disk)], check=True, capture_output=True)
    return bytearray(disk.read_bytes())


def mbr(tmp_path: Path) -> bytearray:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(20 * MIB)
    script = """label: dos
        label-id: 0xdeadbeef
        disk1 : start=2048, size=8192, type=83, bootable
        disk2 : start=10240, size=24576, type=5
        disk3 : start=34816, size=4096, type=82
        disk5 : start=12288, size=4096, type=83
        disk6 : start=18432, size=4096, type=8e
    """
    subprocess.run(["sfdisk", "-q", str(disk)], input=script.encode(), check=True, capture_output=True)
    return bytearray(disk.read_bytes())


@needs_sgdisk
def test_gpt_is_read_as_sgdisk_wrote_it(tmp_path: Path) -> None:
    table = table_of(gpt(tmp_path))
    assert table is not None
    assert (table.kind, table.sector_size) == ("gpt", 512)
    first, second, fifth = table.partitions
    assert (first.number, first.start, first.size_bytes, first.type) == (1, MIB, MIB, BIOS_BOOT_TYPE)
    assert (second.number, second.start, second.size_bytes, second.type) == (2, 2 * MIB, 4 * MIB, ESP_TYPE)
    assert (fifth.number, fifth.start, fifth.name) == (5, 6 * MIB, "Wurzel ö")
    assert fifth.part_uuid == "11111111-2222-3333-4444-555555555555"


@needs_sgdisk
@pytest.mark.parametrize("at", [512 + 40, 1024 + 32])
def test_the_backup_serves_where_the_first_copy_is_damaged(tmp_path: Path, at: int) -> None:
    content = gpt(tmp_path)
    expected = table_of(content)
    content[at] ^= 1
    assert table_of(content) == expected


@needs_sgdisk
def test_a_gpt_damaged_in_both_copies_is_refused(tmp_path: Path) -> None:
    content = gpt(tmp_path)
    content[512 + 40] ^= 1
    content[-512 + 40] ^= 1
    with pytest.raises(SourceImageDamaged, match="checksum"):
        table_of(content)


def resealed(content: bytearray, **fields: int) -> bytearray:
    """The first header with other numbers and a right checksum: what a forger would write."""
    places = {"count": (80, "<I"), "entry_size": (84, "<I"), "entries_at": (72, "<Q")}
    for name, value in fields.items():
        at, form = places[name]
        struct.pack_into(form, content, 512 + at, value)
    struct.pack_into("<I", content, 512 + 16, 0)
    struct.pack_into("<I", content, 512 + 16, zlib.crc32(content[512 : 512 + 92]))
    content[-512:] = bytes(512)
    return content


@needs_sgdisk
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"count": 1 << 20}, SourceUnsupported),
        ({"entry_size": 1 << 31}, SourceImageDamaged),
        ({"entry_size": 0}, SourceImageDamaged),
        ({"entries_at": 1 << 60}, SourceImageDamaged),
    ],
)
def test_a_forged_header_is_refused(tmp_path: Path, fields: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        table_of(resealed(gpt(tmp_path), **fields))


@needs_sfdisk
def test_mbr_with_logical_partitions_is_read_as_sfdisk_wrote_it(tmp_path: Path) -> None:
    content = mbr(tmp_path)
    table = table_of(content)
    assert table is not None
    assert table.kind == "dos"
    shown = subprocess.run(["sfdisk", "-d", str(tmp_path / "disk")], check=True, capture_output=True, text=True).stdout
    expected = []
    for line in shown.splitlines():
        if "start=" in line and "type=5" not in line:
            facts = dict(part.strip().split("=") for part in line.partition(" : ")[2].split(",") if "=" in part)
            expected.append((int(facts["start"]) * 512, int(facts["size"]) * 512, f"0x{int(facts['type'], 16):02x}"))
    found = sorted((part.start, part.size_bytes, part.type) for part in table.partitions)
    assert found == sorted(expected)
    assert [part.number for part in table.partitions] == [1, 3, 5, 6]
    assert table.partitions[0].part_uuid == "deadbeef-01"


@needs_sfdisk
def test_logical_partitions_in_a_circle_are_refused(tmp_path: Path) -> None:
    content = mbr(tmp_path)
    extended = struct.unpack_from("<I", content, 446 + 16 + 8)[0]
    at = extended * 512 + 462
    content[at + 4] = 5
    second = extended + struct.unpack_from("<I", content, at + 8)[0]
    struct.pack_into("<B", content, second * 512 + 462 + 4, 5)
    struct.pack_into("<I", content, second * 512 + 462 + 8, second - extended)
    with pytest.raises(SourceImageDamaged, match="circle"):
        table_of(content)


@needs_sfdisk
def test_partitions_that_overlap_or_leave_the_disk_are_refused(tmp_path: Path) -> None:
    content = mbr(tmp_path)
    with pytest.raises(SourceImageDamaged, match="ends at byte"):
        table_of(content[: 18 * MIB])
    struct.pack_into("<I", content, 446 + 12, 9 * MIB // 512)
    with pytest.raises(SourceImageDamaged, match="overlaps"):
        table_of(content)


def test_a_disk_without_a_table_has_none() -> None:
    assert table_of(bytes(MIB)) is None
    assert table_of(b"") is None


@settings(max_examples=300, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 33 * 512), st.integers(0, 255)), max_size=40),
    mbr_entries=st.binary(min_size=64, max_size=64),
)
def test_any_bytes_give_a_table_or_our_errors(flips: list[tuple[int, int]], mbr_entries: bytes) -> None:
    content = bytearray(MIB)
    content[512:520] = b"EFI PART"
    for at, value in flips:
        content[at] = value
    content[446:510] = mbr_entries
    content[510:512] = b"\x55\xaa"
    with contextlib.suppress(SourceImageDamaged, SourceUnsupported):
        table_of(content)

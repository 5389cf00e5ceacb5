"""Which blocks are in use: made by the tools of each filesystem, and judged by them. No root is needed."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from rehost.agent.block_device import BLOCK_BYTES, Area, Device, between, block_runs, common, joined
from rehost.agent.used import Used, copied_blocks, used_blocks
from rehost.agent.used_ext import bit_runs
from rehost.agent.used_rules import LIVE, OFF, STILL

MIB = 1 << 20


def map_of(image: Path, state: str = OFF) -> Used:
    with Device(Area(os.fsencode(image), 0, image.stat().st_size, True)) as device:
        return used_blocks(device, state, lambda: None)


def copy(image: Path, used: Used, target: Path) -> Path:
    """Only the blocks of the map, in a sparse file."""
    with image.open("rb") as source, target.open("wb") as file:
        for at in range(0, len(used.runs), 2):
            source.seek(used.runs[at] * BLOCK_BYTES)
            file.seek(used.runs[at] * BLOCK_BYTES)
            file.write(source.read(used.runs[at + 1] * BLOCK_BYTES))
        file.truncate(image.stat().st_size)
    return target


def tool(name: str, *arguments: str | Path) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([name, *arguments], capture_output=True, text=True, errors="replace", check=False)
    assert done.returncode == 0, f"{name}: {done.stdout[-3000:]}{done.stderr[-1000:]}"
    return done.stdout


def tree(folder: Path, seed: int) -> Path:
    chance = random.Random(seed)
    for number in range(60):
        path = folder / f"d{number % 7}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.choice((0, 100, 5000, 200_000))))
    return folder


def put_garbage(image: Path, used: Used) -> None:
    """What is free holds remains of other times: an image that is copied by its map must not need them."""
    free = [at for at in range(image.stat().st_size // BLOCK_BYTES) if not _inside(used, at)]
    with image.open("r+b") as file:
        for block in free[:: max(1, len(free) // 50)]:
            file.seek(block * BLOCK_BYTES)
            file.write(b"remains" * 100)


def _inside(used: Used, block: int) -> bool:
    return any(used.runs[at] <= block < used.runs[at] + used.runs[at + 1] for at in range(0, len(used.runs), 2))


EXT = [
    ("-t", "ext2"),
    ("-t", "ext2", "-r", "0", "-O", "none"),
    ("-t", "ext2", "-O", "^sparse_super,^resize_inode", "-b", "1024"),
    ("-t", "ext3"),
    ("-t", "ext4"),
    ("-t", "ext4", "-b", "1024"),
    ("-t", "ext4", "-b", "2048", "-O", "^64bit"),
    ("-t", "ext4", "-O", "^flex_bg,^metadata_csum,uninit_bg"),
    ("-t", "ext4", "-O", "meta_bg,^resize_inode", "-b", "1024"),
    ("-t", "ext4", "-O", "meta_bg,^resize_inode"),
    ("-t", "ext4", "-O", "sparse_super2"),
    ("-t", "ext4", "-O", "bigalloc", "-C", "65536"),
    ("-t", "ext4", "-O", "bigalloc", "-b", "1024", "-C", "8192"),
    ("-t", "ext4", "-O", "mmp,inline_data,ea_inode,project"),
    ("-t", "ext4", "-G", "64", "-N", "2000", "-E", "packed_meta_blocks=1"),
]


@pytest.mark.parametrize("options", EXT, ids=" ".join)
def test_a_copy_of_the_mapped_blocks_is_a_sound_ext_filesystem(options: tuple[str, ...], tmp_path: Path) -> None:
    image = tmp_path / "image"
    tool("mke2fs", "-q", "-F", *options, "-d", tree(tmp_path / "tree", 1), image, "300M")
    used = map_of(image)
    assert (used.rule, used.reason) == ("ext4", "")
    told = tool("dumpe2fs", "-h", image)
    facts = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    block = int(facts["Block size"])
    counted = (int(facts["Block count"]) - int(facts["Free blocks"])) * block
    # The boot block, and in clusters the blocks before the first one, are counted by one and not by the other.
    assert abs(used.used_bytes - counted) <= 16 * block
    assert sum(used.runs[1::2]) * BLOCK_BYTES < 120 * MIB
    put_garbage(image, used)
    target = copy(image, used, tmp_path / "copy")
    tool("e2fsck", "-fn", target)
    before = tool("debugfs", "-R", f"rdump / {_folder(tmp_path / 'before')}", image)
    after = tool("debugfs", "-R", f"rdump / {_folder(tmp_path / 'after')}", target)
    assert before == after
    tool("diff", "-r", tmp_path / "before", tmp_path / "after")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_every_group_of_a_large_filesystem_is_in_the_map(tmp_path: Path) -> None:
    image = tmp_path / "image"
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1", image, "1T")
    used = map_of(image)
    assert used.rule == "ext4"
    facts = tool("dumpe2fs", image)
    places = [
        int(line.split("at ")[1].split(" ")[0].split("-")[0]) for line in facts.splitlines() if "bitmap at" in line
    ]
    places += [int(line.split("at ")[1].split(",")[0]) for line in facts.splitlines() if "Backup superblock" in line]
    starts, ends = used.runs[0::2], [a + b for a, b in zip(used.runs[0::2], used.runs[1::2], strict=True)]
    for place in places:
        block = place * 4096 // BLOCK_BYTES
        at = next(n for n in range(len(starts)) if starts[n] <= block < ends[n])
        assert at >= 0
    assert sum(used.runs[1::2]) * BLOCK_BYTES < 30 << 30


def unused_tables(image: Path) -> list[tuple[int, int]]:
    """First byte and the one behind the last of what was never used of inode tables, as dumpe2fs tells."""
    facts = tool("dumpe2fs", image)
    per_group = int(re.findall(r"Inodes per group: +(\d+)", facts)[0])
    inode_bytes = int(re.findall(r"Inode size:\s+(\d+)", facts)[0])
    found = []
    for group in re.split(r"\nGroup \d+:", facts)[1:]:
        start, end = map(int, re.findall(r"Inode table at (\d+)-(\d+)", group)[0])
        unused = [int(each) for each in re.findall(r"(\d+) unused inodes", group)]
        used = -(-(per_group - unused[0]) * inode_bytes // 4096) if unused else end + 1 - start
        found.append(((start + used) * 4096, (end + 1) * 4096))
    return [(start, end) for start, end in found if end > start]


def test_the_unused_end_of_an_inode_table_is_not_copied(tmp_path: Path) -> None:
    image = tmp_path / "image"
    tool(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-N", "60000", "-E", "lazy_itable_init=0"),
        *("-d", tree(tmp_path / "tree", 5), image, "300M"),
    )
    tails = unused_tables(image)
    with image.open("r+b") as file:
        for start, end in tails:
            file.seek(start)
            file.write(b"remains of inodes" * ((end - start) // 17))
    used = map_of(image)
    for start, end in tails:
        inside = range(-(-start // BLOCK_BYTES) + 1, end // BLOCK_BYTES - 1)
        assert not any(_inside(used, block) for block in inside)
    assert sum(end - start for start, end in tails) > 10 * MIB
    target = copy(image, used, tmp_path / "copy")
    tool("e2fsck", "-fn", target)
    # Inodes beyond the old end are taken, the filesystem grows, and all of it is sound.
    commands = tmp_path / "commands"
    content = tmp_path / "tree" / "d3" / "f3"
    commands.write_text("".join(f"write {content} more{number}\n" for number in range(2000)))
    tool("debugfs", "-w", "-f", commands, target)
    assert unused_tables(target) != tails
    tool("e2fsck", "-fn", target)
    tool("resize2fs", target, "500M")
    tool("e2fsck", "-fn", target)


def test_of_an_inode_table_that_may_be_used_nothing_is_left_out(tmp_path: Path) -> None:
    image = tmp_path / "image"
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-N", "60000", image, "300M")
    _, end = unused_tables(image)[0]
    block = end // BLOCK_BYTES - 1
    assert not _inside(map_of(image), block)
    bitmap = int(re.findall(r"Inode bitmap at (\d+)", tool("dumpe2fs", image))[0])
    with image.open("r+b") as file:
        per_group = int(re.findall(r"Inodes per group: +(\d+)", tool("dumpe2fs", image))[0])
        file.seek(bitmap * 4096 + per_group // 8 - 1)
        file.write(b"\x80")  # the last inode is in use, which the descriptor knows nothing of
    assert _inside(map_of(image), block)
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-O", "^metadata_csum,^uninit_bg", "-N", "60000", image, "300M")
    assert _inside(map_of(image), block)


def test_holes_of_a_file_are_not_copied(tmp_path: Path) -> None:
    image = tmp_path / "image"
    without = ("-O", "^metadata_csum,^uninit_bg", "-N", "60000")
    tool("mke2fs", "-q", "-F", "-t", "ext4", *without, "-d", tree(tmp_path / "tree", 6), image, "300M")
    tool("fallocate", "--dig-holes", image)
    with Device(Area(os.fsencode(image), 0, image.stat().st_size, True)) as device:
        copied = copied_blocks(device, OFF, lambda: None)
    used = map_of(image)
    assert copied._replace(runs=used.runs) == used
    assert sum(copied.runs[1::2]) < sum(used.runs[1::2]) // 2
    target = copy(image, copied, tmp_path / "copy")
    tool("cmp", target, copy(image, used, tmp_path / "whole"))


def test_a_map_that_waits_for_its_journal_is_not_used(tmp_path: Path) -> None:
    image = tmp_path / "image"
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", image, "40M")
    tool("debugfs", "-w", "-R", "feature needs_recovery", image)
    for state in (OFF, STILL):
        used = map_of(image, state)
        assert used.rule == "nonzero"
        assert "journal" in used.reason
    assert map_of(image, LIVE).rule == "ext4"


def test_a_map_that_disagrees_with_itself_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rehost.agent.used._PAUSE_SECONDS", 0.0)
    image = tmp_path / "image"
    tool("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", image, "40M")
    place = next(
        int(line.split("at ")[1].split(" ")[0])
        for line in tool("dumpe2fs", image).splitlines()
        if "Block bitmap at" in line
    )
    with image.open("r+b") as file:
        file.seek(place * 4096)
        file.write(b"\0\0")
    used = map_of(image)
    assert used.rule == "nonzero"
    assert "does not agree" in used.reason


@pytest.mark.parametrize(
    "options", [("-m", "crc=1"), ("-m", "crc=0"), ("-b", "size=1024", "-m", "crc=0"), ("-d", "agcount=5")]
)
def test_a_copy_of_the_mapped_blocks_is_a_sound_xfs_filesystem(options: tuple[str, ...], tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 400 * MIB)
    prototype = tmp_path / "prototype"
    prototype.write_text(f"none\n0 0\nd--755 0 0\nfile ---644 0 0 {tree(tmp_path / 'tree', 2) / 'd3' / 'f3'}\n$\n$\n")
    tool("mkfs.xfs", "-q", *options, "-p", prototype, image)
    used = map_of(image)
    assert (used.rule, used.reason) == ("xfs", "")
    free = int(tool("xfs_db", "-r", "-c", "sb 0", "-c", "p fdblocks", image).split("=")[1])
    block = int(tool("xfs_db", "-r", "-c", "sb 0", "-c", "p blocksize", image).split("=")[1])
    # What the free lists hold back counts as free in the superblock.
    assert used.used_bytes <= 400 * MIB - free * block + 64 * 16 * block
    put_garbage(image, used)
    tool("xfs_repair", "-n", copy(image, used, tmp_path / "copy"))


def test_an_xfs_filesystem_that_was_not_unmounted_is_not_mapped(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 400 * MIB)
    tool("mkfs.xfs", "-q", image)
    raw = image.read_bytes()
    start = raw.index(b"\xfe\xed\xba\xbe")
    with image.open("r+b") as file:
        file.seek(start + 512 + 9)
        file.write(b"\0")  # the last operation of the log is no unmount any more
    assert map_of(image).reason.startswith("its log")
    assert map_of(image, STILL).rule == "xfs"


@pytest.mark.parametrize(
    "options", [(), ("-m", "single"), ("-M",), ("-n", "4096", "-O", "^no-holes", "-R", "^free-space-tree")]
)
def test_a_copy_of_the_mapped_blocks_is_a_sound_btrfs_filesystem(options: tuple[str, ...], tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 400 * MIB)
    tool("mkfs.btrfs", "-q", *options, "--rootdir", tree(tmp_path / "tree", 3), image)
    os.truncate(image, max(image.stat().st_size, 120 * MIB))
    used = map_of(image)
    assert (used.rule, used.reason) == ("btrfs", "")
    assert sum(used.runs[1::2]) * BLOCK_BYTES < 60 * MIB
    put_garbage(image, used)
    target = copy(image, used, tmp_path / "copy")
    tool("btrfs", "check", "--check-data-csum", target)
    # The checker is content with one copy of what is there twice; the map has both.
    told = tool("btrfs", "inspect-internal", "dump-super", image)
    root = next(line.split()[1] for line in told.splitlines() if line.startswith("root\t"))
    mirrors = re.findall(r"physical (\d+)", tool("btrfs-map-logical", "-l", root, image))
    assert mirrors
    assert all(_inside(used, int(place) // BLOCK_BYTES) for place in mirrors)
    assert len(mirrors) == (1 if "single" in options or "-M" in options else 2)


def test_several_devices_of_btrfs_are_refused(tmp_path: Path) -> None:
    images = [tmp_path / "one", tmp_path / "two"]
    for image in images:
        image.touch()
        os.truncate(image, 200 * MIB)
    tool("mkfs.btrfs", "-q", "-d", "raid1", "-m", "raid1", *images)
    assert map_of(images[0]).rule == "nonzero"
    assert "more than one device" in map_of(images[0]).reason


def test_of_swap_the_header_alone_is_kept_but_not_of_a_suspended_machine(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 8 * MIB)
    tool("mkswap", "-q", image)
    used = map_of(image)
    assert (used.rule, list(used.runs), used.used_bytes) == ("swap", [0, 1], 4096)
    with image.open("r+b") as file:
        file.seek(4086)
        file.write(b"S1SUSPEND\0")
        file.seek(5 * MIB)
        file.write(b"memory")
    used = map_of(image)
    assert used.rule == "nonzero"
    assert list(used.runs)[-2] * BLOCK_BYTES <= 5 * MIB


VG = """data {{
id = "aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-aaaaaa"
seqno = 7
format = "lvm2" # informational
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 2048
physical_volumes {{
pv0 {{
id = "{id}"
device = "/dev/vdb" # a "quoted" } in a comment
pe_start = 2048
pe_count = 90
}}
pv1 {{
id = "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb"
pe_start = 2048
pe_count = 90
}}
}}
logical_volumes {{
root {{
segment_count = 2
segment1 {{
start_extent = 0
extent_count = 5
type = "striped"
stripe_count = 1
stripes = [
"pv0", 3
]
}}
segment2 {{
start_extent = 5
extent_count = 8
type = "striped"
stripe_count = 2
stripe_size = 128
stripes = [
"pv0", 20,
"pv1", 0
]
}}
}}
moving {{
segment1 {{
extent_count = 2
type = "mirror"
mirrors = ["pv1", 40, "pv0", 60]
}}
}}
}}
}}
# Generated by LVM2
"""


def crc(raw: bytes) -> int:
    """LVM's checksum, bit by bit: that of its own sources, not ours."""
    value = 0xF597A6CF
    for byte in raw:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
    return value


def physical_volume(image: Path, *, wrap: bool = False) -> None:
    """By LVM2's own description of the format."""
    identity = "0123456789abcdefghijklmnopqrstuv"
    dashed = "-".join(identity[a:b] for a, b in ((0, 6), (6, 10), (10, 14), (14, 18), (18, 22), (22, 26), (26, 32)))
    text = VG.replace("{{", "{").replace("}}", "}").replace("{id}", dashed).encode() + b"\0"
    body = identity.encode() + struct.pack("<Q", 100 * MIB) + struct.pack("<QQQQ", MIB, 0, 0, 0)
    body += struct.pack("<QQQQ", 4096, MIB - 4096, 0, 0)
    label = struct.pack("<I8s", 32, b"LVM2 001") + body
    label = (label + bytes(512))[: 512 - 20]
    size = MIB - 4096
    at = size - 700 if wrap else 512
    head = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, 4096, size) + struct.pack(
        "<QQII", at, len(text), crc(text), 0
    )
    head = (head + bytes(512))[:508]
    with image.open("wb") as file:
        file.truncate(100 * MIB)
        file.seek(512)
        file.write(struct.pack("<8sQI", b"LABELONE", 1, crc(label)) + label)
        file.seek(4096)
        file.write(struct.pack("<I", crc(head)) + head)
        file.seek(4096 + at)
        file.write(text[: size - at])
        file.seek(4096 + 512)
        file.write(text[size - at :] if wrap else text)


@pytest.mark.parametrize("wrap", [False, True])
def test_of_a_physical_volume_the_metadata_and_allocated_extents_are_kept(wrap: bool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    physical_volume(image, wrap=wrap)
    used = map_of(image)
    assert (used.rule, used.reason, used.filesystem) == ("lvm", "", "LVM2_member")
    # One MiB an extent, from 1 MiB on: 3 to 8, 20 to 24, 60 to 62, and what lies behind the last one.
    runs = [(used.runs[at] / 16, used.runs[at + 1] / 16) for at in range(0, len(used.runs), 2)]
    assert runs == [(0, 1), (4, 5), (21, 4), (61, 2), (91, 9)]


def test_damaged_metadata_of_lvm_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rehost.agent.used._PAUSE_SECONDS", 0.0)
    image = tmp_path / "image"
    physical_volume(image)
    with image.open("r+b") as file:
        file.seek(4096 + 512 + 300)
        file.write(b"9")
    used = map_of(image)
    assert (used.rule, list(used.runs)) != ("lvm", [])
    assert "checksum" in used.reason


def test_what_is_unknown_is_read_whole_but_for_holes(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(300 * MIB)
        file.seek(200 * MIB + 5)
        file.write(b"something")
    used = map_of(image)
    assert (used.rule, used.filesystem, used.reason) == ("nonzero", None, "")
    assert list(used.runs) == [200 * MIB // BLOCK_BYTES, 1]


def test_metadata_beyond_all_bounds_never_makes_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage of every kind to what maps are made of: a map is refused, or holds all that it held before."""
    monkeypatch.setattr("rehost.agent.used._ATTEMPTS", 1)
    chance = random.Random(5)
    for make in (("mke2fs", "-q", "-F", "-t", "ext4"), ("mkfs.xfs", "-q", "-f"), ("mkfs.btrfs", "-q", "-f")):
        image = tmp_path / make[0]
        image.touch()
        os.truncate(image, 320 * MIB)
        tool(*make, image)
        sound = map_of(image)
        for _ in range(60):
            place = chance.choice((1024 + chance.randrange(400), chance.randrange(400), 65536 + chance.randrange(900)))
            with image.open("r+b") as file:
                file.seek(place)
                held = file.read(4)
                file.seek(place)
                file.write(chance.randbytes(4))
            used = map_of(image)  # whatever it says, it says something, in bounds
            assert not len(used.runs) or used.runs[-2] + used.runs[-1] <= 320 * MIB // BLOCK_BYTES
            with image.open("r+b") as file:
                file.seek(place)
                file.write(held)
        assert map_of(image) == sound


def test_runs_of_bits() -> None:
    chance = random.Random(9)
    for _ in range(200):
        bitmap = bytes(chance.choice((0, 0, 255, chance.randrange(256))) for _ in range(40))
        exact = {bit for start, end in bit_runs(bitmap, 65536) for bit in range(start, end)}
        assert exact == {bit for bit in range(320) if bitmap[bit // 8] >> bit % 8 & 1}
        coarse = {bit for start, end in bit_runs(bitmap, 4096) for bit in range(start, end)}
        assert exact <= coarse


def test_runs_of_blocks_are_ascending_and_apart() -> None:
    size = 10 * BLOCK_BYTES - 7
    assert list(block_runs([(0, 1), (BLOCK_BYTES, BLOCK_BYTES + 1), (4 * BLOCK_BYTES - 1, size)], size)) == [0, 2, 3, 7]
    assert list(block_runs([], size)) == []
    for ranges in ([(5, 9), (0, 3)], [(0, size + 1)], [(9, 5)]):
        with pytest.raises(ValueError, match="out of order"):
            block_runs(ranges, size)


def test_ranges_are_sets_of_bytes() -> None:
    chance = random.Random(10)

    def ranges() -> list[tuple[int, int]]:
        starts = sorted(chance.randrange(100) for _ in range(chance.randrange(12)))
        return [(start, chance.randrange(start, 101)) for start in starts]

    def members(these: list[tuple[int, int]]) -> set[int]:
        return {byte for start, end in these for byte in range(start, end)}

    for _ in range(2000):
        one, other = ranges(), ranges()
        first, second = list(joined(one)), list(joined(other))
        assert members(first) == members(one)
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(first))
        assert members(list(common(first, second))) == members(one) & members(other)
        assert list(common(first, second)) == sorted(common(first, second))
        assert members(list(between(first, 100))) == set(range(100)) - members(one)
    with pytest.raises(ValueError, match="out of order"):
        list(joined([(5, 9), (0, 3)]))

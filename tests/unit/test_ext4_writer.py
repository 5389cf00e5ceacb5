"""The ext4 writer, judged by e2fsck and by the reader of ext4 images."""

from __future__ import annotations

import random
import re
import subprocess
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from image_builders.disk.ext4 import needed_bytes, write_ext4
from image_builders.disk.ext4.htree import hash_names
from image_builders.disk.ext4.superblock import identity_of
from rehost.errors import BuildDiskTooSmall, BuildUnsupported
from rehost.progress import silent
from rehost.replication.manifest import FILES_SCHEMA, Chunk, Entry, table_of
from tests.support.ext4_images import (
    BLOCK,
    IMAGE_UUID,
    Chunks,
    assert_clean,
    assert_holds,
    straddling_names,
    write_image,
)
from tests.support.ext4_nasty import nasty_table

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
ROOT = Entry(b"", 0o40755, mtime_ns=1_700_000_000_000_000_000)


def _columns(count: int, paths: list[bytes], modes: np.ndarray) -> pa.Table:
    """A large table of entries without content, without an object for each."""
    zero = np.zeros(count, np.int64)
    columns = {
        "path": pa.array(paths, pa.binary()),
        "mode": pa.array(modes, pa.uint32()),
        "link_group": pa.nulls(count, pa.uint64()),
        "target": pa.nulls(count, pa.binary()),
        "unstable": pa.array(np.zeros(count, np.bool_)),
        "xattrs": pa.ListArray.from_arrays(
            pa.array(np.zeros(count + 1, np.int32)), pa.array([], FILES_SCHEMA.field("xattrs").type.value_type)
        ),
        "chunks": pa.ListArray.from_arrays(
            pa.array(np.zeros(count + 1, np.int32)), pa.array([], FILES_SCHEMA.field("chunks").type.value_type)
        ),
    }
    return pa.table(
        [columns[f.name] if f.name in columns else pa.array(zero).cast(f.type) for f in FILES_SCHEMA],
        schema=FILES_SCHEMA,
    )


def _one_directory(count: int, name: bytes, mode: int) -> pa.Table:
    paths = [b"", b"many", *sorted(b"many/" + name % number for number in range(count))]
    modes = np.full(count + 2, mode, np.uint32)
    modes[:2] = 0o40755
    return _columns(count + 2, paths, modes)


def test_everything_that_a_tree_can_hold_is_written_and_read_back(tmp_path: Path) -> None:
    files, chunks = nasty_table()
    image = write_image(tmp_path / "image", 300 * MIB, files, chunks)
    assert_clean(image)
    assert_holds(image, files, chunks)


def test_what_is_needed_is_enough_and_so_is_every_larger_size(tmp_path: Path) -> None:
    files, chunks = nasty_table()
    needed = needed_bytes(files)
    for more in (0, BLOCK, 3 * MIB + 5, 112 * MIB, 129 * MIB, 1 * GIB):
        image = write_image(tmp_path / "image", needed + more, files, chunks)
        assert_clean(image)
    assert_holds(write_image(image, needed, files, chunks), files, chunks)


@pytest.mark.parametrize("content", [6 * MIB, 100 * MIB, 500 * MIB])
def test_a_filesystem_filled_to_the_brim_is_sound(tmp_path: Path, content: int) -> None:
    chunks = Chunks()
    piece = chunks.put(0, b"\x5a" * MIB)
    count = content // MIB
    entry = Entry(
        b"full",
        0o100644,
        size=count * MIB,
        chunks=tuple(Chunk(number * MIB, MIB, piece.sha256) for number in range(count)),
    )
    files = table_of([ROOT, entry])
    needed = needed_bytes(files)
    image = write_image(tmp_path / "image", needed, files, chunks)
    assert_clean(image)
    assert_holds(image, files, chunks)
    # Overhead is journal, tables and a margin, not a multiple of the content.
    assert needed < content * 1.05 + 12 * MIB


def test_too_small_is_told_with_figures_before_anything_is_written(tmp_path: Path) -> None:
    files, chunks = nasty_table()
    target = tmp_path / "image"
    target.write_bytes(b"untouched")
    for size in (0, 4096, 7 * MIB, 8 * MIB, 10 * MIB):
        with target.open("r+b") as file, pytest.raises(BuildDiskTooSmall) as caught:
            write_ext4(file, 0, size, files, chunks, uuid=IMAGE_UUID, label="", progress=silent)
        assert caught.value.facts["size_bytes"] == size
        assert caught.value.facts["needed_bytes"] == needed_bytes(files)
    assert target.read_bytes() == b"untouched"


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    files, chunks = nasty_table()
    size = needed_bytes(files)
    one = write_image(tmp_path / "one", size, files, chunks)
    two = write_image(tmp_path / "two", size, files.combine_chunks(), chunks)
    assert one.read_bytes() == two.read_bytes()


def test_the_rest_of_the_disk_is_left_alone(tmp_path: Path) -> None:
    files, chunks = nasty_table()
    size = needed_bytes(files) + 1000
    disk = tmp_path / "disk"
    edge = b"E" * 3 * MIB
    with disk.open("wb") as file:
        file.write(edge)
        file.seek(3 * MIB + size)
        file.write(edge)
    with disk.open("r+b") as file:
        write_ext4(file, 3 * MIB, size, files, chunks, uuid=IMAGE_UUID, label="trial", progress=silent)
    content = disk.read_bytes()
    alone = write_image(tmp_path / "alone", size, files, chunks).read_bytes()
    assert content[: 3 * MIB] == edge
    assert content[3 * MIB + size :] == edge
    assert content[3 * MIB : 3 * MIB + size] == alone


@pytest.mark.parametrize(
    "size",
    [8 * MIB, 16 * MIB, 128 * MIB, 128 * MIB + 100 * BLOCK, 300 * MIB, 2 * GIB, 20 * GIB, 129 * GIB, 2 * TIB + BLOCK],
)
def test_empty_filesystems_of_all_sizes_are_sound_and_small(tmp_path: Path, size: int) -> None:
    image = write_image(tmp_path / "image", size, table_of([ROOT]), Chunks())
    assert image.stat().st_size == size
    assert image.stat().st_blocks * 512 < 6 * MIB + size // 32_768
    assert_clean(image)


def test_the_features_are_those_that_old_kernels_and_grub_know(tmp_path: Path) -> None:
    image = write_image(tmp_path / "image", 64 * MIB, table_of([ROOT]), Chunks())
    shown = subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
    told = dict(re.findall(r"^([^:\n]+):[ \t]+(.*)$", shown, re.MULTILINE))
    assert told["Filesystem features"] == (
        "has_journal ext_attr resize_inode dir_index filetype extent flex_bg "
        "sparse_super large_file huge_file uninit_bg dir_nlink extra_isize"
    )
    assert told["Filesystem volume name"] == "trial"
    assert told["Filesystem UUID"] == str(IMAGE_UUID)
    assert told["Filesystem state"] == "clean"
    assert told["Filesystem flags"].strip() == "signed_directory_hash"
    assert told["Default directory hash"] == "half_md4"
    assert told["Block size"] == "4096"
    assert told["Inode size"] == "256"
    assert told["Total journal size"] == "4096k"
    assert told["Reserved block count"] == str(64 * MIB // BLOCK // 20)
    assert told["Journal backup"] == "inode blocks"


def test_the_geometry_is_the_one_that_mke2fs_chooses(tmp_path: Path) -> None:
    options = [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^64bit,^metadata_csum,uninit_bg",
        "-b",
        "4096",
        "-i",
        "16384",
        "-I",
        "256",
    ]
    for size in (GIB, 20 * GIB, 150 * GIB):
        ours = write_image(tmp_path / "ours", size, table_of([ROOT]), Chunks())
        theirs = tmp_path / "theirs"
        theirs.unlink(missing_ok=True)
        with theirs.open("wb") as file:
            file.truncate(size)
        subprocess.run(["mke2fs", *options, theirs], check=True)
        shown = [
            subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, check=True).stdout
            for image in (ours, theirs)
        ]
        for name in (
            *("Block count", "Inode count", "Reserved block count", "Reserved GDT blocks", "Inodes per group"),
            *("Total journal size", "Flex block group size", "Free inodes", "First block", "Inode blocks per group"),
        ):
            one, two = (re.search(rf"^{name}: +(.*)$", text, re.MULTILINE) for text in shown)
            assert one is not None and two is not None, name
            assert one[1] == two[1], name


def test_names_are_hashed_as_debugfs_hashes_them() -> None:
    # debugfs reads its commands as C strings in words: no blanks, quotes or control bytes here.
    allowed = [byte for byte in range(33, 256) if byte not in b"\"'`#\\/"]
    draw = random.Random(4)
    names = [bytes(draw.choices(allowed, k=length)) for length in [*range(1, 120), 200, 255] for _ in range(3)]
    names = [name for name in names if not name.startswith(b"-")]
    seed = uuid.uuid4()
    commands = b"".join(b"dx_hash -h half_md4 -s %s %s\n" % (str(seed).encode(), name) for name in names)
    shown = subprocess.run(["debugfs", "-f", "/dev/stdin"], input=commands, capture_output=True, check=True).stdout
    theirs = [(int(a, 16), int(b, 16)) for a, b in re.findall(rb"is 0x([0-9a-f]+) \(minor 0x([0-9a-f]+)\)", shown)]
    data = np.frombuffer(b"".join(names), np.uint8)
    lengths = np.asarray([len(name) for name in names], np.int64)
    major, minor = hash_names(data, np.cumsum(lengths) - lengths, lengths, seed.bytes)
    assert len(theirs) == len(names)
    assert list(zip(major.tolist(), minor.tolist(), strict=True)) == theirs


def test_a_hash_that_lies_in_two_leaves_is_marked(tmp_path: Path) -> None:
    names, one, two = straddling_names()
    entries = [ROOT, Entry(b"d", 0o40755), *(Entry(b"d/" + name, 0o100644) for name in names)]
    image = write_image(tmp_path / "image", 64 * MIB, table_of(entries), Chunks())
    assert_clean(image)
    shown = subprocess.run(["debugfs", "-R", "htree_dump /d", image], capture_output=True, text=True, check=True).stdout
    keys = [int(key, 16) for key in re.findall(r"^Entry #\d+: Hash 0x([0-9a-f]+)", shown, re.MULTILINE)]
    data = np.frombuffer(one + two, np.uint8)
    eight = np.full(2, 8, np.int64)
    (first, second), _ = hash_names(data, np.asarray([0, 8]), eight, identity_of(IMAGE_UUID, b"", 0).hash_seed)
    assert first == second
    assert {key for key in keys if key & 1} == {int(first) | 1}


def test_a_hundred_thousand_names_in_one_directory(tmp_path: Path) -> None:
    files = _one_directory(100_000, b"%016d.mail", 0o100600)
    image = write_image(tmp_path / "image", 400 * MIB, files, Chunks())
    assert_clean(image)
    assert_holds(image, files, Chunks())
    shown = subprocess.run(["debugfs", "-R", "htree_dump /many", image], capture_output=True, text=True, check=True)
    assert "Indirect levels: 1" in shown.stdout


def test_sixty_six_thousand_subdirectories(tmp_path: Path) -> None:
    files = _one_directory(66_000, b"%d", 0o40700)
    image = write_image(tmp_path / "image", needed_bytes(files), files, Chunks())
    assert_clean(image)
    shown = subprocess.run(["debugfs", "-R", "stat /many", image], capture_output=True, text=True, check=True).stdout
    assert "Links: 1 " in shown
    shown = subprocess.run(["debugfs", "-R", "stat /", image], capture_output=True, text=True, check=True).stdout
    assert "Links: 4 " in shown


def test_inodes_may_outnumber_what_the_size_gives(tmp_path: Path) -> None:
    """Sixteen full inode tables do not fit into the first group of a flex group."""
    files = _one_directory(300_000, b"%x", 0o100600)
    image = write_image(tmp_path / "image", needed_bytes(files), files, Chunks())
    assert_clean(image)
    image = write_image(tmp_path / "image", 1300 * MIB, files, Chunks())
    assert_clean(image)


@pytest.mark.parametrize("grown", [GIB, 200 * GIB])
def test_resize2fs_grows_and_shrinks_it(tmp_path: Path, grown: int) -> None:
    files, chunks = nasty_table()
    image = write_image(tmp_path / "image", 256 * MIB, files, chunks)
    with image.open("r+b") as file:
        file.truncate(grown)
    for argv in (["e2fsck", "-f", "-p"], ["resize2fs"]):
        subprocess.run([*argv, image], check=True, capture_output=True)
    assert_clean(image)
    if grown == GIB:
        subprocess.run(["resize2fs", "-M", image], check=True, capture_output=True)
        assert_clean(image)
    assert_holds(image, files, chunks)


def _refusals() -> dict[str, list[Entry]]:
    content = Chunk(0, 4, b"c" * 32)

    def file(**fields: object) -> Entry:
        return replace(Entry(b"f", 0o100644, size=10, chunks=(content,)), **fields)  # type: ignore[arg-type]

    return {
        "a name with NUL": [Entry(b"a\0b", 0o100644)],
        "a name too long": [Entry(b"n" * 256, 0o100644)],
        "an absolute path": [Entry(b"/etc", 0o40755)],
        "an empty name": [Entry(b"a", 0o40755), Entry(b"a//b", 0o100644)],
        "a name of a slash": [Entry(b"a", 0o40755), Entry(b"a/", 0o100644)],
        "dot": [Entry(b".", 0o40755)],
        "dot dot": [Entry(b"..", 0o40755), Entry(b"../x", 0o100644)],
        "no parent": [Entry(b"a/b", 0o100644)],
        "a parent that is a file": [Entry(b"a", 0o100644), Entry(b"a/b", 0o100644)],
        "a path twice": [Entry(b"a", 0o100644), Entry(b"a", 0o100600)],
        "an unknown type": [Entry(b"a", 0o170644)],
        "a mode out of range": [Entry(b"a", 0o1100644)],
        "a file too large": [Entry(b"a", 0o100644, size=2**44)],
        "a size that overflows": [Entry(b"a", 0o100644, size=2**64 - 1)],
        "a chunk past the size": [file(size=3)],
        "a chunk whose end overflows": [file(chunks=(Chunk(2**64 - 2, 4, b"c" * 32),))],
        "chunks that overlap": [file(chunks=(content, Chunk(3, 4, b"d" * 32)))],
        "chunks out of order": [file(chunks=(Chunk(5, 4, b"d" * 32), content))],
        "content of a directory": [Entry(b"d", 0o40755, size=10, chunks=(content,))],
        "a device number too large": [Entry(b"d", 0o20644, rdev_major=4096)],
        "a symbolic link to nothing": [Entry(b"l", 0o120777, target=b"")],
        "a symbolic link without target": [Entry(b"l", 0o120777)],
        "a target too long": [Entry(b"l", 0o120777, target=b"t" * 4096)],
        "a target with NUL": [Entry(b"l", 0o120777, target=b"t\0t")],
        "hard links that differ": [Entry(b"a", 0o100644, link_group=1), Entry(b"b", 0o100600, link_group=1)],
        "hard links of directories": [Entry(b"a", 0o40755, link_group=1), Entry(b"b", 0o40755, link_group=1)],
        "lost+found as a file": [Entry(b"lost+found", 0o100644)],
        "an attribute without name": [Entry(b"a", 0o100644, xattrs=((b"user.", b"x"),))],
        "an attribute of no namespace": [Entry(b"a", 0o100644, xattrs=((b"system.data", b"x"),))],
        "an attribute twice": [Entry(b"a", 0o100644, xattrs=((b"user.a", b"x"), (b"user.a", b"y")))],
        "attributes too large": [Entry(b"a", 0o100644, xattrs=((b"user.a", b"x" * 4100),))],
        "a strange ACL": [Entry(b"a", 0o100644, xattrs=((b"system.posix_acl_access", b"\2\0\0\0x"),))],
        "an ACL of an unknown tag": [
            Entry(b"a", 0o100644, xattrs=((b"system.posix_acl_access", b"\2\0\0\0\x40\0\7\0\0\0\0\0"),))
        ],
    }


@pytest.mark.parametrize("what", _refusals())
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path: Path, what: str) -> None:
    target = tmp_path / "image"
    target.touch()
    files = table_of([ROOT, *_refusals()[what]])
    with target.open("r+b") as file, pytest.raises(BuildUnsupported):
        write_ext4(file, 0, 64 * MIB, files, Chunks(), uuid=IMAGE_UUID, label="", progress=silent)
    assert target.stat().st_size == 0
    with pytest.raises(BuildUnsupported):
        needed_bytes(files)


def test_more_links_than_an_inode_counts_are_refused() -> None:
    files = _one_directory(65_001, b"%d", 0o100600)
    groups = pa.array([None, None, *[1] * 65_001], pa.uint64())
    files = files.set_column(files.schema.get_field_index("link_group"), FILES_SCHEMA.field("link_group"), groups)
    with pytest.raises(BuildUnsupported, match="65000"):
        needed_bytes(files)
    assert needed_bytes(files.slice(0, 65_002)) > 0


def test_tables_that_are_none_are_refused() -> None:
    files = table_of([ROOT, Entry(b"a", 0o100644)])
    for bad in (files.slice(0, 0), files.slice(1), files.drop_columns(["uid"]), files.take([0, 1, 1])):
        with pytest.raises(BuildUnsupported):
            needed_bytes(bad)


def test_a_chunk_of_another_length_than_promised_ends_the_build(tmp_path: Path) -> None:
    chunks = Chunks()
    entry = chunks.file(b"f", (0, b"content"))
    chunks.content[entry.chunks[0].sha256] = b"cont"
    with pytest.raises(BuildUnsupported, match="4 bytes"):
        write_image(tmp_path / "image", 64 * MIB, table_of([ROOT, entry]), chunks)


def test_what_the_reader_raises_comes_through(tmp_path: Path) -> None:
    entry = replace(Chunks().file(b"f", (0, b"content")))
    with pytest.raises(KeyError):
        write_image(tmp_path / "image", 64 * MIB, table_of([ROOT, entry]), Chunks())


def test_attributes_of_another_filesystem_are_left_out(tmp_path: Path) -> None:
    entry = Entry(b"f", 0o100644, xattrs=((b"btrfs.compression", b"zstd"), (b"user.kept", b"1")))
    image = write_image(tmp_path / "image", 64 * MIB, table_of([ROOT, entry]), Chunks())
    assert_clean(image)
    assert_holds(image, table_of([ROOT, replace(entry, xattrs=((b"user.kept", b"1"),))]), Chunks())


def test_a_time_before_1901_becomes_the_earliest(tmp_path: Path) -> None:
    early = Entry(b"f", 0o100644, mtime_ns=-(2**62), atime_ns=-(2**31) * 10**9 - 1)
    image = write_image(tmp_path / "image", 64 * MIB, table_of([ROOT, early]), Chunks())
    clamped = -(2**31) * 10**9
    assert_clean(image)
    assert_holds(image, table_of([ROOT, replace(early, mtime_ns=clamped, atime_ns=clamped)]), Chunks())


def test_progress_never_goes_back_and_ends_at_all(tmp_path: Path) -> None:
    files, chunks = nasty_table()
    seen: list[tuple[int, int]] = []
    with (tmp_path / "image").open("w+b") as target:
        write_ext4(
            target,
            0,
            64 * MIB,
            files,
            chunks,
            uuid=IMAGE_UUID,
            label="",
            progress=lambda done, total, note="": seen.append((done, total)),
        )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0


# --- random manifests -----------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"0")),
    st.sampled_from([b"a", b"a-b", b"a.b", b"bin", b"lost+found", b"\xff"]),
).filter(lambda name: name not in (b".", b".."))
TIMES = st.integers(-(2**31) * 10**9, 2**63 - 1)
XATTRS = st.dictionaries(
    st.builds(
        bytes.__add__,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        st.binary(min_size=1, max_size=40).filter(lambda name: 0 not in name),
    ),
    st.binary(max_size=300),
    max_size=5,
)
PIECES = st.lists(st.tuples(st.integers(0, 3 * BLOCK), st.integers(1, 3 * BLOCK)), max_size=8)


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.Table, Chunks]:
    chunks = Chunks()
    directories = [b""]
    entries: dict[bytes, Entry] = {}

    def attributes(kind: int) -> dict[str, object]:
        return {
            "mode": kind | draw(st.integers(0, 0o7777)),
            "uid": draw(st.integers(0, 2**32 - 1)),
            "gid": draw(st.integers(0, 2**32 - 1)),
            "atime_ns": draw(TIMES),
            "mtime_ns": draw(TIMES),
            "ctime_ns": draw(TIMES),
            "xattrs": tuple(sorted(draw(XATTRS).items())),
        }

    entries[b""] = Entry(b"", **attributes(0o40000))  # type: ignore[arg-type]
    for group in range(draw(st.integers(0, 25))):
        directory = draw(st.sampled_from(directories))
        name = draw(NAMES)
        path = directory + b"/" + name if directory else name
        kind = draw(st.sampled_from([0o100000, 0o100000, 0o40000, 0o120000, 0o20000, 0o60000, 0o10000, 0o140000]))
        if path == b"lost+found":
            kind = 0o40000
        if path in entries:
            continue
        entry = Entry(path, **attributes(kind))  # type: ignore[arg-type]
        if kind == 0o40000:
            directories.append(path)
        elif kind == 0o120000:
            entry = replace(entry, target=draw(st.binary(min_size=1, max_size=200)).replace(b"\0", b"0"))
        elif kind in (0o20000, 0o60000):
            entry = replace(entry, rdev_major=draw(st.integers(0, 4095)), rdev_minor=draw(st.integers(0, 2**20 - 1)))
        elif kind == 0o100000:
            at = 0
            pieces: list[tuple[int, bytes]] = []
            for gap, length in draw(PIECES):
                pieces.append((at + gap, bytes([len(pieces) + 1]) * length))
                at += gap + length
            content = chunks.file(path, *pieces, size=at + draw(st.integers(0, 2**41)))
            flags = draw(st.sampled_from([0, 0x10, 0x20, 0x40, 0x70]))
            entry = replace(entry, size=content.size, chunks=content.chunks, flags=flags)
        entries[path] = entry
        if kind != 0o40000 and draw(st.booleans()):
            other = draw(st.sampled_from(directories))
            twin = (other + b"/" if other else b"") + draw(NAMES)
            if twin not in entries and twin != b"lost+found":
                entries[path] = replace(entry, link_group=group)
                entries[twin] = replace(entries[path], path=twin)
    return table_of(list(entries.values())), chunks


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=tables(), more=st.sampled_from([0, 37 * MIB]))
def test_random_tables_are_written_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[pa.Table, Chunks], more: int
) -> None:
    files, chunks = made
    image = write_image(tmp_path_factory.getbasetemp() / "random.img", needed_bytes(files) + more, files, chunks)
    assert_clean(image)
    assert_holds(image, files, chunks)

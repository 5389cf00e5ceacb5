"""The rules of a files table: a sound one passes, and each way to break one is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from rehost.errors import ManifestInvalid
from rehost.replication.manifest import (
    FILES_SCHEMA,
    Chunk,
    Entry,
    entry_of,
    table_of,
    validate,
    validate_batches,
    validate_file,
)

DIR, FILE, LINK, CHAR, FIFO = 0o040755, 0o100644, 0o120777, 0o020600, 0o010600
ROOT = Entry(b"", DIR)
NAME = bytes(range(32))


def chunked(*chunks: tuple[int, int], size: int, path: bytes = b"f") -> Entry:
    return Entry(path, FILE, size=size, chunks=tuple(Chunk(offset, length, NAME) for offset, length in chunks))


SOUND = [
    ROOT,
    Entry(b"a", DIR, xattrs=((b"user.a", b""), (b"user.b", b"x" * 65_536))),
    Entry(b"a-b", FILE),
    Entry(b"a/x", FILE, uid=0xFFFF_FFFE, mtime_ns=-(1 << 62), flags=0x70),
    Entry(b"a/..x", FILE),
    Entry(b"a/...", FILE),
    Entry(b"a/.x", FILE),
    Entry(b"n" * 255, DIR),
    Entry(b"\xff\n", LINK, target=b"../../../etc"),
    Entry(b"tty", CHAR, rdev_major=5, rdev_minor=1 << 19),
    Entry(b"fifo", FIFO, link_group=3),
    Entry(b"fifo2", FIFO, link_group=3),
    chunked((0, 10), (1 << 20, 1 << 20), size=1 << 40),
    Entry(b"h1", FILE, size=5, chunks=(Chunk(0, 5, NAME),), link_group=0),
    Entry(b"h2", FILE, size=5, chunks=(Chunk(0, 5, NAME),), link_group=0),
]


def test_a_sound_table_passes_and_comes_back_as_it_was() -> None:
    table = table_of(SOUND)
    validate(table)
    assert [entry_of(row) for row in table.to_pylist()] == sorted(SOUND, key=lambda e: e.path)
    validate(table_of([ROOT]))
    validate(pa.concat_tables([table.slice(0, 4), table.slice(4)]))
    validate(table.slice(0, 5))


def in_pieces(table: pa.Table, *lengths: int) -> list[pa.Table]:
    """The table cut into pieces of these lengths, again and again, some of them empty."""
    pieces, at, number = [], 0, 0
    while at < len(table) or number < len(lengths):
        length = lengths[number % len(lengths)]
        pieces.append(table.slice(at, length))
        at, number = at + length, number + 1
    return pieces


def is_sound(*pieces: pa.Table) -> bool:
    try:
        validate_batches(pieces)
    except ManifestInvalid:
        return False
    return True


@pytest.mark.parametrize("lengths", [(1,), (2,), (3, 0, 1), (7,)])
def test_a_sound_table_passes_in_pieces(lengths: tuple[int, ...], tmp_path: Path) -> None:
    table = table_of(
        [*SOUND, Entry(b"a/x-", DIR), Entry(b"a/x-/y", FILE), Entry(b"a/x-!", DIR), Entry(b"a/x-!/y", FILE)]
    )
    assert is_sound(*in_pieces(table, *lengths))
    pq.write_table(table, tmp_path / "files.parquet", row_group_size=lengths[0])
    validate_file(tmp_path / "files.parquet")


def test_a_table_of_no_pieces_has_no_root(tmp_path: Path) -> None:
    assert not is_sound()
    pq.write_table(table_of([]), tmp_path / "files.parquet")
    with pytest.raises(ManifestInvalid, match="root"):
        validate_file(tmp_path / "files.parquet")


BROKEN = pytest.mark.parametrize(
    "bad",
    [
        [],
        [Entry(b"a", DIR)],
        [Entry(b"", FILE)],
        [ROOT, ROOT],
        [ROOT, Entry(b"a", FILE), Entry(b"a", FILE)],
        [ROOT, Entry(b"/etc", FILE)],
        [ROOT, Entry(b"a/", DIR)],
        [ROOT, Entry(b"a", DIR), Entry(b"a//b", FILE)],
        [ROOT, Entry(b"a", DIR), Entry(b"a/..", DIR)],
        [ROOT, Entry(b"..", DIR)],
        [ROOT, Entry(b"..", DIR), Entry(b"../x", FILE)],
        [ROOT, Entry(b".", DIR)],
        [ROOT, Entry(b"a", DIR), Entry(b"a/.", DIR), Entry(b"a/./b", FILE)],
        [ROOT, Entry(b"a\0b", FILE)],
        [ROOT, Entry(b"n" * 256, FILE)],
        [ROOT, *(Entry(b"/".join([b"d" * 200] * depth), DIR) for depth in range(1, 22))],
        [ROOT, Entry(b"no/parent", FILE)],
        [ROOT, Entry(b"link", LINK, target=b"/"), Entry(b"link/x", FILE)],
        [ROOT, Entry(b"file", FILE), Entry(b"file/x", FILE)],
        [ROOT, Entry(b"a", 0o644)],
        [ROOT, Entry(b"a", 0o160644)],
        [ROOT, Entry(b"a", FILE | 1 << 20)],
        [ROOT, Entry(b"a", DIR, size=1)],
        [ROOT, Entry(b"a", FILE, size=1 << 63)],
        [ROOT, Entry(b"a", LINK)],
        [ROOT, Entry(b"a", LINK, target=b"")],
        [ROOT, Entry(b"a", LINK, target=b"x\0")],
        [ROOT, Entry(b"a", LINK, target=b"x" * 4096)],
        [ROOT, Entry(b"a", FILE, target=b"x")],
        [ROOT, Entry(b"a", FILE, rdev_major=1)],
        [ROOT, Entry(b"a", CHAR, rdev_major=1 << 12)],
        [ROOT, Entry(b"a", CHAR, rdev_minor=1 << 20)],
        [ROOT, Entry(b"a", FILE, uid=0xFFFF_FFFF)],
        [ROOT, Entry(b"a", FILE, gid=0xFFFF_FFFF)],
        [ROOT, Entry(b"a", FILE, flags=1)],
        [ROOT, Entry(b"a", DIR, chunks=(Chunk(0, 1, NAME),))],
        [ROOT, chunked((0, 0), size=5)],
        [ROOT, chunked((0, 6), size=5)],
        [ROOT, chunked((0, (16 << 20) + 1), size=1 << 30)],
        [ROOT, chunked(((1 << 64) - 1, 2), size=5)],
        [ROOT, chunked((0, 3), (2, 3), size=5)],
        [ROOT, chunked((3, 2), (0, 2), size=5)],
        [ROOT, Entry(b"a", FILE, xattrs=((b"", b""),))],
        [ROOT, Entry(b"a", FILE, xattrs=((b"user.a\0", b""),))],
        [ROOT, Entry(b"a", FILE, xattrs=((b"n" * 256, b""),))],
        [ROOT, Entry(b"a", FILE, xattrs=((b"user.a", b"x" * 65_537),))],
        [ROOT, Entry(b"a", FILE, xattrs=((b"user.a", b"1"), (b"user.a", b"2")))],
        [ROOT, Entry(b"a", DIR, link_group=1), Entry(b"b", DIR, link_group=1)],
        [ROOT, Entry(b"a", FILE, link_group=1), Entry(b"b", FIFO, link_group=1)],
        [ROOT, Entry(b"a", FILE, link_group=1), Entry(b"b", LINK, target=b"x", link_group=1)],
        [ROOT, Entry(b"a", FILE, link_group=1), Entry(b"b", FILE, size=1, link_group=1)],
        [ROOT, replace(chunked((0, 5), size=9), link_group=1), Entry(b"g", FILE, size=9, link_group=1)],
        [ROOT, Entry(b"a", LINK, target=b"x", link_group=1), Entry(b"b", LINK, target=b"y", link_group=1)],
        [ROOT, Entry(b"a", FILE, volume=0, link_group=1), Entry(b"b", FILE, volume=1, link_group=1)],
    ],
    ids=lambda entries: repr([(e.path[:9], oct(e.mode)) for e in entries])[:70],
)


@BROKEN
def test_each_broken_rule_is_refused(bad: list[Entry]) -> None:
    with pytest.raises(ManifestInvalid):
        validate(table_of(bad))
    for lengths in ((1,), (2,), (0, 1, 3)):
        assert not is_sound(*in_pieces(table_of(bad), *lengths))


def test_the_refusal_names_the_row_and_is_safe_to_print() -> None:
    with pytest.raises(ManifestInvalid) as told:
        validate(table_of([ROOT, Entry(b"a", DIR), Entry(b"a/\x1b[31m\xff", LINK)]))
    assert "/a/\\x1b[31m\\xff:" in str(told.value)


def test_rows_out_of_order_other_columns_and_nulls_are_refused() -> None:
    table = table_of(SOUND)
    broken = [
        pa.concat_tables([table.slice(0, 1), table.slice(2, 1), table.slice(1, 1)]),
        table.drop_columns(["flags"]),
        table.set_column(1, "volume", pa.array([0] * len(table), pa.int64())),
        table.set_column(2, FILES_SCHEMA.field("mode"), pa.array([None] * len(table), pa.uint32())),
    ]
    for bad in broken:
        with pytest.raises(ManifestInvalid):
            validate(bad)


names = st.sampled_from([b"", b".", b"..", b"a", b"a.", b"ab", b"\xff", b"\0", b"x" * 255, b"x" * 256, b"-"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(names, min_size=1, max_size=4).map(b"/".join), max_size=12), st.sampled_from([DIR, FILE]))
def test_paths_are_judged_as_one_by_one(paths: list[bytes], kind: int) -> None:
    entries = [ROOT, *(Entry(path, DIR if n % 3 else kind) for n, path in enumerate(paths))]
    directories = {entry.path for entry in entries if entry.is_directory}
    sound = len({entry.path for entry in entries}) == len(entries) and all(
        entry.path.rpartition(b"/")[0] in directories
        and b"\0" not in entry.path
        and all(0 < len(name) <= 255 and name not in (b".", b"..") for name in entry.path.split(b"/"))
        for entry in entries[1:]
    )
    try:
        validate(table_of(entries))
    except ManifestInvalid:
        assert not sound
    else:
        assert sound


entries = st.builds(
    Entry,
    st.lists(st.sampled_from([b"a", b"a-", b"a!", b"a0", b"b"]), min_size=1, max_size=3).map(b"/".join),
    st.sampled_from([DIR, DIR, DIR, FILE, FILE]),
    link_group=st.sampled_from([None, None, None, 1, 2]),
    volume=st.sampled_from([0, 0, 0, 0, 1]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(entries, max_size=14), st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any), st.booleans())
def test_in_pieces_a_table_is_judged_as_in_one(drawn: list[Entry], lengths: list[int], with_parents: bool) -> None:
    unique = {entry.path: replace(entry, link_group=None) if entry.is_directory else entry for entry in drawn}
    if with_parents:
        for path in list(unique):
            while path := path.rpartition(b"/")[0]:
                unique[path] = Entry(path, DIR)
    table = table_of([ROOT, *unique.values()])
    assert is_sound(*in_pieces(table, *lengths)) == is_sound(table)


def test_names_of_one_inode_that_differ_far_apart_are_refused() -> None:
    same = Entry(b"a", FILE, size=9, chunks=(Chunk(0, 4, NAME), Chunk(5, 4, NAME[::-1])), link_group=1 << 60)
    others = [Entry(b"b%03d" % number, FILE, link_group=number) for number in range(100)]
    assert is_sound(*in_pieces(table_of([ROOT, same, *others, replace(same, path=b"z")]), 10))
    for change in (
        {"volume": 1},
        {"size": 10},
        {"mode": FIFO, "size": 0, "chunks": ()},
        {"chunks": (Chunk(0, 4, NAME), Chunk(5, 4, NAME))},
        {"chunks": (Chunk(0, 4, NAME[::-1]), Chunk(5, 4, NAME))},
        {"chunks": (Chunk(0, 4, NAME), Chunk(4, 4, NAME[::-1]))},
        {"chunks": (Chunk(0, 4, NAME),)},
    ):
        other = replace(same, path=b"z", **change)
        assert not is_sound(*in_pieces(table_of([ROOT, same, *others, other]), 10)), change

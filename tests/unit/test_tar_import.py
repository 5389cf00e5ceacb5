"""A tar becomes a files table: what GNU tar wrote of a tree is what is restored of it."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rehost.errors import ManifestInvalid, RehostError, TarRefused
from rehost.replication.export import export_tree
from rehost.replication.manifest import CHUNK_BYTES, Entry, entry_of
from rehost.replication.store import Store
from rehost.replication.tar_import import import_tar
from rehost.replication.tree import Tree
from tests.support.trees import look_at_tree, make_nasty_tree


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def taken_in(path: Path, *members: tarfile.TarInfo, contents: dict[str, bytes] | None = None) -> dict[bytes, Entry]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            content = (contents or {}).get(info.name, b"")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    with Store.open(path / "store") as store:
        return {entry.path: entry for entry in map(entry_of, import_tar(buffer, store).to_pylist())}


DIR, LINK, HARD, CHAR = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE


@pytest.mark.parametrize("form", ["gnu", "pax", "sparse pax", "gzip"])
def test_what_gnu_tar_wrote_is_restored(tmp_path: Path, form: str) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    make_nasty_tree(origin, huge=form == "sparse pax")
    flags = {
        "gnu": ["--format=gnu", "-S"],
        "pax": ["--format=pax", "--xattrs", "--xattrs-include=*"],
        "sparse pax": ["--format=pax", "-S", "--xattrs", "--xattrs-include=*"],
        "gzip": ["--format=pax", "-z", "-S", "--xattrs", "--xattrs-include=*"],
    }[form]
    unreadable = [] if os.geteuid() == 0 else ["--exclude=./mode 0000"]
    with (
        subprocess.Popen(["tar", "-C", origin, *flags, *unreadable, "-cf", "-", "."], stdout=subprocess.PIPE) as tar,
        Store.open(tmp_path / "store") as store,
    ):
        assert isinstance(tar.stdout, io.BufferedReader)
        table = import_tar(tar.stdout, store)
        export_tree(Tree(table, store), tmp_path / "restored")
    before, after = look_at_tree(origin), look_at_tree(tmp_path / "restored")
    # GNU tar leaves sockets out, and its own format has no attributes and whole seconds only.
    expected = set(before) - {b"socket"} - ({b"mode 0000"} if unreadable else set())
    assert set(after) == expected
    for name in expected:
        a, b = before[name], after[name]
        if not a.mode.startswith("p"):  # nor does it link FIFOs
            assert b.names == a.names, name
        assert (b.mode, b.owner, b.size, b.target, b.device) == (
            a.mode,
            a.owner,
            a.size,
            a.target,
            a.device,
        ), name
        assert b.mtime_ns == (a.mtime_ns if form != "gnu" else a.mtime_ns // 10**9 * 10**9), name
        assert b.xattrs == (a.xattrs if form != "gnu" else ()), name
        if form in ("sparse pax", "gzip"):
            # tar looks for runs of zeros where it cannot see holes, so only what is not zero must be there.
            assert [d.strip(b"\0") for _, _, d in b.data if d.strip(b"\0")] == [
                d.strip(b"\0") for _, _, d in a.data if d.strip(b"\0")
            ], name


def test_names_lose_their_front_and_missing_parents_appear(tmp_path: Path) -> None:
    entries = taken_in(
        tmp_path, member("./etc/a/b", mtime=3.5, mode=0o600), member("./", DIR, mode=0o700, mtime=9), member("x//./y")
    )
    assert sorted(entries) == [b"", b"etc", b"etc/a", b"etc/a/b", b"x", b"x/y"]
    assert entries[b"etc"].mode == stat.S_IFDIR | 0o755
    assert entries[b""].mode == stat.S_IFDIR | 0o700
    assert entries[b"etc/a/b"].mtime_ns == 3_500_000_000


def test_the_later_member_counts_and_links_keep_what_they_led_to(tmp_path: Path) -> None:
    first, second = member("a", uid=1), member("a", uid=2)
    entries = taken_in(tmp_path, first, member("b", HARD, linkname="./a"), second, member("c", HARD, linkname="b"))
    assert entries[b"a"].uid == 2 and entries[b"a"].link_group is None
    assert entries[b"b"].uid == entries[b"c"].uid == 1
    assert entries[b"b"].link_group == entries[b"c"].link_group is not None


def test_times_and_attributes_are_exact(tmp_path: Path) -> None:
    headers = {"mtime": "1700000000.123456789", "atime": "-1.000000001", "SCHILY.xattr.user.a": "x=1\n"}
    entries = taken_in(tmp_path, member("f", pax_headers=headers))
    assert entries[b"f"].mtime_ns == 1_700_000_000_123_456_789
    assert entries[b"f"].atime_ns == -1_000_000_001
    assert entries[b"f"].xattrs == ((b"user.a", b"x=1\n"),)


def test_content_is_cut_at_the_multiples_of_a_chunk(tmp_path: Path) -> None:
    content = os.urandom(CHUNK_BYTES) * 2 + b"tail"
    entries = taken_in(tmp_path, member("f"), contents={"f": content})
    assert [(c.offset, c.length) for c in entries[b"f"].chunks] == [
        (0, CHUNK_BYTES),
        (CHUNK_BYTES, CHUNK_BYTES),
        (2 * CHUNK_BYTES, 4),
    ]
    with Store.open(tmp_path / "store") as store:
        assert b"".join(store.read_chunk(c.sha256) for c in entries[b"f"].chunks) == content


@pytest.mark.parametrize(
    "members",
    [
        [member("../escaped")],
        [member("a/../../escaped")],
        [member("/etc/passwd")],
        [member("a", HARD, linkname="/etc/passwd")],
        [member("a", HARD, linkname="../x")],
        [member("a", HARD, linkname="nothing")],
        [member("d", DIR), member("a", HARD, linkname="d")],
        [member("l", LINK, linkname="/etc"), member("l/passwd")],
        [member("d", DIR), member("d/x"), member("d", LINK, linkname="/etc")],
        [member("f"), member("f/x")],
        [member(".", LINK, linkname="/")],
        [member("c", CHAR, devmajor=1 << 13)],
        [member("x" * 256)],
        [member("f", pax_headers={"mtime": "1e999999999"})],
        [member("f", pax_headers={"mtime": "1e999999999999999999999"})],
        [member("f", pax_headers={"mtime": "soon"})],
        [member("f", pax_headers={"uid": "4294967295"})],
        [member("f", pax_headers={"mtime": "NaN"})],
        [member("f", pax_headers={"SCHILY.xattr." + "n" * 300: "x"})],
    ],
    ids=lambda members: " ".join(m.name[:20] for m in members),
)
def test_hostile_members_are_refused(tmp_path: Path, members: list[tarfile.TarInfo]) -> None:
    with pytest.raises((TarRefused, ManifestInvalid)):
        taken_in(tmp_path, *members)


def test_a_tar_that_ends_too_soon_or_is_none_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = member("f")
        info.size = 100_000
        tar.addfile(info, io.BytesIO(bytes(100_000)))
    with Store.open(tmp_path / "store") as store:
        for wrong in (buffer.getvalue()[:50_000], b"no tar" * 1000, b""):
            with pytest.raises(RehostError):
                import_tar(io.BytesIO(wrong), store)


def test_many_small_files_are_stored_together(tmp_path: Path) -> None:
    contents = {f"{number:05}": b"line %d of a log\n" % (number % 9000) for number in range(10_000)}
    taken_in(tmp_path, *map(member, contents), contents=contents)
    with Store.open(tmp_path / "store") as store:
        table = pq.read_table(next(tmp_path.glob("store/indexes/*.parquet")))
        assert table.num_rows == 9000
        assert len(table["offset"].unique()) == 3  # bundles
        assert [store.read_chunk(hashlib.sha256(content).digest()) for content in contents.values()] == [
            *contents.values()
        ]

"""The layer and the archive: what tar readers find in them is what the manifest says."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from image_builders.container.archive import _header, write_archive
from image_builders.container.layer import Notes, content_size, header, layer
from image_builders.container.left_out import carried_xattr
from rehost.errors import BuildUnsupported
from rehost.replication.manifest import CHUNK_BYTES, Chunk, Entry, entry_of, table_of
from tests.support.containers import Chunks, table_from
from tests.support.trees import make_nasty_tree

FILE = stat.S_IFREG | 0o644


def tar_of(entries: list[Entry], chunks: Chunks | None = None) -> tuple[bytes, Notes]:
    notes = Notes()
    return b"".join(layer(table_of(entries), chunks or Chunks(), notes)), notes


def members(tar: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as file:
        return file.getmembers()


def mtime_ns(member: tarfile.TarInfo) -> int:
    return int(Decimal(member.pax_headers.get("mtime", str(member.mtime))) * 1_000_000_000)


def test_a_nasty_tree_is_in_the_layer_as_it_was(tmp_path: Path) -> None:
    make_nasty_tree(tmp_path, huge=False)
    chunks, notes = Chunks(), Notes()
    table = table_from(tmp_path, chunks)
    kinds = pc.bit_wise_and(table["mode"], 0o170000)
    carried = pc.is_in(kinds, pc.cast([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO], "uint32"))
    table = table.filter(carried)
    tar = b"".join(layer(table, chunks, notes))
    wanted = [entry_of(row) for row in table.to_pylist()]
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as file:
        found = {os.fsencode(m.name.removeprefix("./").rstrip("/")).removeprefix(b"."): m for m in file.getmembers()}
        # tarfile drops the slash of directories and writes "." for the root.
        assert sorted(found) == [entry.path for entry in wanted]
        firsts: dict[int, bytes] = {}
        for entry in wanted:
            member = found[entry.path]
            assert (member.mode, member.uid, member.gid) == (stat.S_IMODE(entry.mode), entry.uid, entry.gid), entry.path
            assert mtime_ns(member) == entry.mtime_ns, entry.path
            xattrs = {
                os.fsencode(key.removeprefix("SCHILY.xattr.")): value.encode("utf-8", "surrogateescape")
                for key, value in member.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            }
            assert xattrs == {key: value for key, value in entry.xattrs if carried_xattr(key)}, entry.path
            if entry.link_group is not None and firsts.setdefault(entry.link_group, entry.path) != entry.path:
                assert member.islnk() and os.fsencode(member.linkname) == firsts[entry.link_group]
            elif entry.is_symlink:
                assert member.issym() and os.fsencode(member.linkname) == entry.target
            elif entry.is_directory:
                assert member.isdir()
            elif entry.is_file:
                content = file.extractfile(member)
                assert content is not None
                assert content.read() == (tmp_path / os.fsdecode(entry.path)).read_bytes(), entry.path
            else:
                assert member.isfifo()
    assert notes.content_bytes == content_size(table)
    assert tar == b"".join(layer(table, chunks, Notes()))  # the same table, the same bytes


@pytest.mark.parametrize("ns", [0, 1, 1_500_000_000, 1_700_000_000_123_456_789, -1, -1_500_000_000, 1 << 62])
def test_times_are_exact(ns: int) -> None:
    tar, _ = tar_of([Entry(b"", stat.S_IFDIR | 0o755), Entry(b"file", FILE, mtime_ns=ns)])
    assert mtime_ns(members(tar)[1]) == ns


@pytest.mark.parametrize("length", [99, 100, 101, 255, 1000])
def test_names_and_targets_of_any_length_are_kept(length: int) -> None:
    name = b"/".join([b"d" * 50] * 30)[:length].rstrip(b"/") or b"d"
    tar, _ = tar_of([Entry(name, stat.S_IFLNK | 0o777, target=b"t" * length)])
    assert [(m.name, m.linkname) for m in members(tar)] == [(name.decode(), "t" * length)]


def test_large_owners_and_sizes_are_kept() -> None:
    entry = Entry(b"file", FILE, uid=4_000_000_000, gid=1 << 21, size=(1 << 33) + 5)
    with tarfile.open(fileobj=io.BytesIO(header(entry, None, Notes()))) as file:
        member = file.firstmember  # type: ignore[attr-defined]  # the content is not there to go on with
    assert (member.uid, member.gid, member.size) == (4_000_000_000, 1 << 21, (1 << 33) + 5)


def test_holes_are_written_as_zeros() -> None:
    chunks = Chunks()
    name = chunks.add(b"data")
    entry = Entry(b"file", FILE, size=3 * CHUNK_BYTES, chunks=(Chunk(CHUNK_BYTES + 7, 4, name),))
    tar, notes = tar_of([entry], chunks)
    assert tar[512 : 512 + entry.size] == bytes(CHUNK_BYTES + 7) + b"data" + bytes(2 * CHUNK_BYTES - 11)
    assert notes.content_bytes == entry.size


def test_attributes_of_the_old_host_stay_behind() -> None:
    names = [
        b"trusted.overlay.opaque",
        b"user.overlay.redirect",
        b"security.selinux",
        b"user.mine",
        b"security.capability",
    ]
    tar, _ = tar_of([Entry(b"file", FILE, xattrs=tuple((name, b"v") for name in names))])
    assert set(members(tar)[0].pax_headers) == {"SCHILY.xattr.user.mine", "SCHILY.xattr.security.capability"}


def test_an_attribute_that_tar_cannot_name_is_told() -> None:
    tar, notes = tar_of([Entry(b"file", FILE, xattrs=((b"user.a=b", b"v"),))])
    assert members(tar)[0].pax_headers == {}
    assert notes.not_carried == 1 and "user.a=b" in notes.warnings[0]


@pytest.mark.parametrize("path", [b"../etc/passwd", b"a/../../b", b"/etc/passwd", b"a//b", b"a/.", b"a\0b"])
def test_a_hostile_path_is_refused(path: bytes) -> None:
    with pytest.raises(BuildUnsupported):
        tar_of([Entry(path, FILE)])


@pytest.mark.parametrize("kind", [stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK, 0])
def test_what_a_layer_does_not_carry_is_refused(kind: int) -> None:
    with pytest.raises(BuildUnsupported):
        tar_of([Entry(b"x", kind | 0o600)])


@pytest.mark.parametrize(
    "chunks", [(Chunk(0, 4, b""),), (Chunk(0, 2, b""), Chunk(1, 2, b"")), (Chunk(2, 2, b""), Chunk(0, 2, b""))]
)
def test_chunks_that_do_not_fit_the_file_are_refused(chunks: tuple[Chunk, ...]) -> None:
    store = Chunks()
    named = tuple(Chunk(c.offset, c.length, store.add(b"x" * c.length)) for c in chunks)
    with pytest.raises(BuildUnsupported):
        tar_of([Entry(b"x", FILE, size=3, chunks=named)], store)


def test_a_chunk_of_another_length_is_refused() -> None:
    store = Chunks()
    with pytest.raises(BuildUnsupported):
        tar_of([Entry(b"x", FILE, size=5, chunks=(Chunk(0, 5, store.add(b"four")),))], store)


def test_a_failure_of_the_store_ends_the_layer() -> None:
    class Broken(Chunks):
        def read_chunk(self, sha256: bytes) -> bytes:
            raise KeyError(sha256)

    with pytest.raises(KeyError):
        tar_of([Entry(b"x", FILE, size=4, chunks=(Chunk(0, 4, bytes(32)),))], Broken())


def config_of(layer_digest: str) -> dict[str, Any]:
    return {"os": "linux", "rootfs": {"type": "layers", "diff_ids": [layer_digest]}}


def test_the_archive_is_an_oci_layout_and_a_docker_archive(tmp_path: Path) -> None:
    content = b"".join(layer(table_of([Entry(b"", stat.S_IFDIR | 0o755), Entry(b"x", FILE)]), Chunks(), Notes()))
    seen: list[int] = []
    archive = write_archive(tmp_path / "image.tar", iter([content]), config_of, "a/b:c", seen.append)
    with tarfile.open(tmp_path / "image.tar") as file:
        blobs = {m.name: file.extractfile(m).read() for m in file.getmembers()}  # type: ignore[union-attr]
    assert json.loads(blobs["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}

    def blob(digest: str) -> bytes:
        found = blobs["blobs/" + digest.replace(":", "/")]
        assert digest == "sha256:" + hashlib.sha256(found).hexdigest()
        return found

    descriptor = json.loads(blobs["index.json"])["manifests"][0]
    assert descriptor["digest"] == archive.manifest_digest
    manifest = json.loads(blob(descriptor["digest"]))
    assert manifest["config"]["digest"] == archive.config_digest
    assert json.loads(blob(archive.config_digest))["rootfs"]["diff_ids"] == [archive.layer_digest]
    assert blob(manifest["layers"][0]["digest"]) == content
    docker = json.loads(blobs["manifest.json"])[0]
    assert docker["RepoTags"] == ["a/b:c"]
    assert blobs[docker["Layers"][0]] == content
    assert seen == [len(content)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.tar"]


def test_an_archive_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Any:
        yield b"half"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="gone"):
        write_archive(tmp_path / "image.tar", broken(), config_of, "a/b:c", lambda _: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [0, (1 << 33) - 1, 1 << 33, 1 << 45])
def test_archive_members_may_have_any_size(size: int) -> None:
    member = tarfile.TarInfo.frombuf(_header("blobs/sha256/x", size), "ascii", "strict")
    assert (member.name, member.size) == ("blobs/sha256/x", size)

"""Nothing leaves the folder that a tree is restored into, whatever the manifest says."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path

import pytest

from rehost.errors import ExportFailed, ManifestInvalid, StoreChunkMissing
from rehost.replication import export as export_module
from rehost.replication.bundles import Bundle
from rehost.replication.export import export_tree
from rehost.replication.manifest import Chunk, Entry, table_of
from rehost.replication.store import Store
from rehost.replication.tree import Put, Tree
from tests.support.store_writer import name

DIR, FILE, LINK, FIFO = 0o040755, 0o100644, 0o120777, 0o010600


def tree_of(store: Store, *entries: Entry) -> Tree:
    return Tree(table_of([Entry(b"", DIR), *entries]), store)


HOSTILE = {
    "climbs": [Entry(b"..", DIR), Entry(b"../escaped", FILE)],
    "climbs later": [Entry(b"a", DIR), Entry(b"a/..", DIR), Entry(b"a/../../escaped", FILE)],
    "absolute": [Entry(b"/escaped", FILE)],
    "under a link": [Entry(b"l", LINK, target=b".."), Entry(b"l/escaped", FILE)],
    "under a link to a folder": [Entry(b"d", DIR), Entry(b"l", LINK, target=b"d"), Entry(b"l/x", FILE)],
    "NUL": [Entry(b"a\0", FILE)],
    "twice": [Entry(b"a", LINK, target=b"../escaped"), Entry(b"a", FILE)],
    "link group of two kinds": [
        Entry(b"a", LINK, target=b"../escaped", link_group=1),
        Entry(b"b", FILE, size=1, link_group=1),
    ],
    "link group of directories": [Entry(b"a", DIR, link_group=1), Entry(b"b", DIR, link_group=1)],
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_manifest_is_refused_before_anything_is_made(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "sub" / "target"
    with Store.open(tmp_path / "store") as store, pytest.raises(ManifestInvalid):
        export_tree(tree_of(store, *HOSTILE[kind]), target)
    assert not (tmp_path / "sub").exists()


def test_links_that_lead_out_are_restored_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_bytes(b"untouched")
    before = outside.stat(), (outside / "victim").stat()
    entries = [
        Entry(b"a", LINK, target=bytes(outside), uid=1, gid=1, mtime_ns=5, link_group=1),
        Entry(b"b", LINK, target=bytes(outside), uid=1, gid=1, mtime_ns=5, link_group=1),
        Entry(b"c", LINK, target=bytes(outside / "victim"), uid=1, gid=1, mtime_ns=5),
    ]
    with Store.open(tmp_path / "store") as store:
        export_tree(tree_of(store, *entries), tmp_path / "target")
    assert (tmp_path / "target" / "a").lstat().st_ino == (tmp_path / "target" / "b").lstat().st_ino
    after = outside.stat(), (outside / "victim").stat()
    assert [(s.st_uid, s.st_mode, s.st_mtime_ns, s.st_nlink) for s in after] == [
        (s.st_uid, s.st_mode, s.st_mtime_ns, s.st_nlink) for s in before
    ]


def test_a_folder_that_is_swapped_for_a_link_under_way_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    content = [b"first", b"second"]
    entries = [
        Entry(b"d", DIR),
        *(Entry(b"d/%d" % n, FILE, size=len(c), chunks=(Chunk(0, len(c), name(c)),)) for n, c in enumerate(content)),
        Entry(b"d/sub", DIR),
        Entry(b"d/sub/x", FILE),
    ]

    class Swapping:
        """A reader that swaps the folder for a link while the first file is restored."""

        def read_chunk(self, sha256: bytes) -> bytes:
            folder = tmp_path / "target" / "d"
            if not folder.is_symlink():
                folder.rename(tmp_path / "target" / "was d")
                folder.symlink_to(outside)
            return {name(c): c for c in content}[sha256]

    with pytest.raises(ExportFailed):
        # The second pass opens the folder by its name again, and finds a link.
        export_module._OPEN_DIRECTORIES, kept = 1, export_module._OPEN_DIRECTORIES
        try:
            export_tree(Tree(table_of([Entry(b"", DIR), *entries]), Swapping()), tmp_path / "target")
        finally:
            export_module._OPEN_DIRECTORIES = kept
    assert list(outside.iterdir()) == []


def test_only_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_bytes(b"mine")
    with Store.open(tmp_path / "store") as store, pytest.raises(ExportFailed, match="not empty"):
        export_tree(tree_of(store), tmp_path / "target")
    (tmp_path / "link").symlink_to(tmp_path / "target" / "mine")
    with Store.open(tmp_path / "store") as store, pytest.raises(ExportFailed):
        export_tree(tree_of(store), tmp_path / "link")
    assert (tmp_path / "target" / "mine").read_bytes() == b"mine"


def test_a_missing_chunk_ends_the_export(tmp_path: Path) -> None:
    lost = Entry(b"f", FILE, size=1, chunks=(Chunk(0, 1, name(b"lost")),))
    with Store.open(tmp_path / "store") as store, pytest.raises(StoreChunkMissing):
        export_tree(tree_of(store, lost), tmp_path / "target")


def test_edits_are_restored(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        tree = tree_of(store).apply([Put(b"etc/motd", b"hello\n", mode=0o640)])
        export_tree(tree, tmp_path / "target")
    motd = tmp_path / "target" / "etc" / "motd"
    assert motd.read_bytes() == b"hello\n"
    assert stat.S_IMODE(motd.stat().st_mode) == 0o640


def test_deeper_trees_than_descriptors_may_be_open_are_restored(tmp_path: Path) -> None:
    depth = 300
    paths = [b"/".join([b"d"] * level) for level in range(1, depth + 1)]
    entries = [Entry(path, DIR, uid=os.geteuid(), gid=os.getegid(), mtime_ns=5) for path in paths]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Store.open(tmp_path / "store") as store:
        resource.setrlimit(resource.RLIMIT_NOFILE, (depth - 50, hard))
        try:
            export_tree(tree_of(store, *entries), tmp_path / "target")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert all(os.stat(bytes(tmp_path / "target") + b"/" + path).st_mtime_ns == 5 for path in paths)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_who_may_not_give_files_away_gets_no_set_id_programs_and_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for above in tmp_path.parents:
        if not above.stat().st_mode & 0o005:
            above.chmod(above.stat().st_mode | 0o055)
    entries = [
        Entry(b"device", 0o020600, rdev_major=5, rdev_minor=1),
        Entry(b"device too", 0o020600, rdev_major=5, rdev_minor=1),
        Entry(b"mine", 0o104755, uid=65_534, gid=65_534, xattrs=((b"user.a", b"1"),)),
        Entry(b"of root", 0o104755, xattrs=((b"trusted.x", b"1"), (b"user.a", b"1"))),
        Entry(b"shut", 0o040000, uid=65_534, gid=65_534),
        Entry(b"shut/x", 0o100000, uid=65_534, gid=65_534, xattrs=((b"user.a", b"1"),)),
    ]
    with Store.open(tmp_path / "store") as store:
        tree = tree_of(store, *entries)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgroups([])
                os.setresgid(65_534, 65_534, 65_534)
                os.setresuid(65_534, 65_534, 65_534)
                report = export_tree(tree, tmp_path / "target")
                assert report.left_out == len(report.shown)
                assert set(report.shown) == {
                    "node of /device",
                    "node of /device too",
                    "owner of /of root",
                    "attribute trusted.x of /of root",
                    "owner of /",
                }
                status = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    target = tmp_path / "target"
    assert stat.S_IMODE((target / "of root").stat().st_mode) == 0o755
    assert stat.S_IMODE((target / "mine").stat().st_mode) == 0o4755
    assert os.getxattr(target / "shut" / "x", b"user.a") == b"1"


def test_many_files_in_many_folders_with_names_in_common_arrive_as_they_are(tmp_path: Path) -> None:
    contents = [b"%d " % number * (number % 700) for number in range(900)]
    entries = [Entry(b"d%02d" % number, DIR) for number in range(60)]
    for number, content in enumerate(contents):
        chunks = (Chunk(0, len(content), name(content)),) if content else ()
        for folder in {number % 60, number % 7} if number % 5 == 0 else {number % 60}:
            path, group = b"d%02d/f%03d" % (folder, number), number if number % 5 == 0 else None
            entries.append(Entry(path, FILE, size=len(content), chunks=chunks, link_group=group))
    with Store.open(tmp_path / "store") as store:
        store.put_bundle(Bundle.of(contents[:500]))
        store.put_bundle(Bundle.of(contents[500:]))
        report = export_tree(tree_of(store, *entries), tmp_path / "target")
        os.mkdir(tmp_path / "again")
        with pytest.raises(StoreChunkMissing):
            export_tree(tree_of(store, *entries, missing(b"d59/f")), tmp_path / "again")
    assert report.entries == len(entries) + 1
    for entry in entries:
        if entry.is_file:
            number = int(entry.path[-3:])
            file = tmp_path / "target" / os.fsdecode(entry.path)
            assert file.read_bytes() == contents[number]
            assert file.stat().st_nlink == (2 if number % 5 == 0 and number % 60 != number % 7 else 1)
    assert not [link for link in Path("/proc/self/fd").iterdir() if str(tmp_path) in os.path.realpath(link)]


def missing(path: bytes) -> Entry:
    return Entry(path, FILE, size=5, chunks=(Chunk(0, 5, name(b"never")),))

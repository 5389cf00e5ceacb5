"""A Tree behaves as a file system that is edited by hand would: compared with a plain dict of paths."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from rehost.errors import StoreChunkMissing
from rehost.replication.manifest import CHUNK_BYTES, Chunk, Entry, table_of, validate
from rehost.replication.tree import Change, Directory, Put, Remove, Symlink, Tree, printable

DIR, FILE, LINK = 0o040755, 0o100644, 0o120777


class Content(dict[bytes, bytes]):
    """Chunks in memory."""

    def read_chunk(self, sha256: bytes) -> bytes:
        if sha256 not in self:
            raise StoreChunkMissing(sha256=sha256.hex())
        return self[sha256]

    def entry(self, path: bytes, content: bytes, **fields: Any) -> Entry:
        name = hashlib.sha256(content).digest()
        self[name] = content
        chunks = (Chunk(0, len(content), name),) if content else ()
        return replace(Entry(path, FILE, size=len(content), chunks=chunks), **fields)


def server() -> Tree:
    content = Content()
    return Tree(
        table_of(
            [
                Entry(b"", DIR, mtime_ns=7),
                Entry(b"etc", DIR, mtime_ns=8),
                content.entry(b"etc/fstab", b"UUID=1 / ext4\nUUID=2 /home ext4\n", uid=3),
                content.entry(b"etc/hosts", b"hosts", link_group=9),
                content.entry(b"etc/hosts.same", b"hosts", link_group=9),
                Entry(b"lib", LINK, target=b"usr/lib"),
                Entry(b"loop", LINK, target=b"loop"),
                Entry(b"up", LINK, target=b"../../../etc/fstab"),
                Entry(b"usr", DIR),
                Entry(b"usr-local", DIR),
                Entry(b"usr/lib", DIR, volume=1),
                Entry(b"usr/lib/os", LINK, target=b"/etc/hosts"),
                Entry(b"usr/share", DIR),
                content.entry(b"usr/share/x", b"x"),
            ]
        ),
        content,
    )


def test_what_is_there_is_found_and_nothing_else() -> None:
    tree = server()
    found = tree.get(b"etc/fstab")
    assert found is not None and found.uid == 3
    assert tree.get(b"etc/fsta") is None and tree.get(b"/etc/fstab") is None and tree.get(b"zzz") is None
    assert tree.children(b"usr") == [b"usr/lib", b"usr/share"]
    assert tree.children(b"") == [b"etc", b"lib", b"loop", b"up", b"usr", b"usr-local"]
    assert list(tree.below(b"usr")) == [b"usr/lib", b"usr/lib/os", b"usr/share", b"usr/share/x"]
    assert tree.children(b"etc/fstab") == tree.children(b"nowhere") == []


def test_links_are_followed_inside_the_tree_only() -> None:
    tree = server()
    assert tree.read(b"/lib/os") == b"hosts"
    assert tree.read(b"up") == tree.read(b"etc/../etc/./fstab")
    assert tree.resolve(b"loop") is None
    assert tree.read(b"etc") is None
    assert tree.read(b"etc/fstab", limit=4) == b"UUID"


def test_edits_keep_the_attributes_and_leave_the_tree_before_them_alone() -> None:
    before = server()
    after = before.apply([Put(b"etc/fstab", b"new\n")])
    entry = after.get(b"etc/fstab")
    assert entry is not None and entry.uid == 3 and after.read(b"etc/fstab") == b"new\n"
    assert before.read(b"etc/fstab") != b"new\n"
    big = bytes(CHUNK_BYTES) + b"!"
    assert before.apply([Put(b"big", big)]).read(b"big", limit=1 << 30) == big
    validate(after.table())


def test_an_edited_name_leaves_its_hard_links_alone() -> None:
    after = server().apply([Put(b"etc/hosts", b"other")])
    assert after.read(b"etc/hosts.same") == b"hosts"
    validate(after.table())


def test_a_new_file_below_a_linked_directory_is_made_where_the_link_leads() -> None:
    after = server().apply([Put(b"lib/systemd/system/x.service", b"x"), Put(b"lib/y", b"y")])
    link, new = after.get(b"lib"), after.get(b"usr/lib/systemd/system/x.service")
    assert link is not None and link.is_symlink
    assert new is not None and new.volume == 1
    assert after.read(b"lib/y") == b"y"
    validate(after.table())


def test_what_takes_the_place_of_a_directory_leaves_nothing_below() -> None:
    for change in (Symlink(b"usr", b"elsewhere"), Put(b"usr", b"a file"), Remove(b"usr")):
        after = server().apply([change])
        assert list(after.below(b"usr")) == []
        assert after.get(b"usr-local") is not None
        validate(after.table())


@pytest.mark.parametrize("path", [b"", b"/", b"a/../b", b"./a", b".."])
def test_no_edit_reaches_outside_or_takes_the_root(path: bytes) -> None:
    for change in (Remove(path), Put(path, b""), Symlink(path, b"x"), Directory(path)):
        with pytest.raises(ValueError, match="no path"):
            server().apply([change])


def test_the_diff_tells_of_every_edit() -> None:
    diff = (
        server()
        .apply(
            [
                Put(b"etc/fstab", b"UUID=1 / ext4\n"),
                Put(b"etc/hosts", b"hosts", mode=0o600),
                Put(b"new", b"\0binary"),
                Remove(b"usr/share"),
                Symlink(b"lib", b"\x1b[31m"),
                Directory(b"srv"),
            ]
        )
        .diff()
    )
    for line in (
        "-UUID=2 /home ext4",
        "--- a/etc/fstab",
        "Another mode: /etc/hosts (-rw-r--r-- 5 bytes -> -rw------- 5 bytes)",
        "Binary or long: /new",
        "Only in the source: /usr/share (drwxr-xr-x",
        "-x",
        "+symbolic link to \\x1b[31m",
        "Only in the image: /srv (drwxr-xr-x",
    ):
        assert line in diff
    assert "\x1b" not in diff
    assert server().diff() == ""


def test_printable_shows_no_control_characters() -> None:
    assert printable(b"a\n\xff\x1b \xc3\xbc") == "a\\n\\xff\\x1b ü"


# --- against a plain dict

part = st.sampled_from([b"a", b"b", b"a-", b"a0", b"c"])
path = st.lists(part, min_size=1, max_size=4).map(b"/".join)
change = st.one_of(st.builds(Put, path, st.binary(max_size=3)), st.builds(Directory, path), st.builds(Remove, path))


def parents(path: bytes) -> list[bytes]:
    parts = path.split(b"/")[:-1]
    return [b"/".join(parts[:n]) for n in range(1, len(parts) + 1)]


def edit(model: dict[bytes, bytes | None], change: Change) -> None:
    """What a person would do: None is a directory."""
    path = change.path

    def remove(path: bytes) -> None:
        for gone in [p for p in model if p == path or p.startswith(path + b"/")]:
            del model[gone]

    if isinstance(change, Remove):
        remove(path)
        return
    for above in parents(path):
        model[above] = None
    if isinstance(change, Put):
        remove(path)
        model[path] = change.content
    elif model.get(path, b"") is not None:
        model[path] = None


@settings(max_examples=200, deadline=None)
@given(st.lists(change, max_size=8), st.lists(st.lists(change, max_size=4), max_size=3))
def test_a_tree_edits_as_a_dict_does(first: list[Change], batches: list[list[Change]]) -> None:
    model: dict[bytes, bytes | None] = {}
    for made in first:
        edit(model, made)
    content = Content()
    tree = Tree(
        table_of([Entry(b"", DIR), *(Entry(p, DIR) if c is None else content.entry(p, c) for p, c in model.items())]),
        content,
    )
    for batch in [[], *batches]:
        tree = tree.apply(batch)
        for made in batch:
            edit(model, made)
        assert list(tree.below(b"")) == sorted(model)
        for at in [b"", *model]:
            prefix = at + b"/" if at else b""
            below = sorted(p for p in model if p.startswith(prefix))
            assert list(tree.below(at)) == below
            assert tree.children(at) == [p for p in below if b"/" not in p[len(prefix) :]]
        for at, data in model.items():
            entry = tree.get(at)
            assert entry is not None and stat.S_ISDIR(entry.mode) == (data is None)
            assert tree.read(at) == data
        table = tree.table()
        validate(table)
        assert table["path"].to_pylist() == [b"", *sorted(model)]

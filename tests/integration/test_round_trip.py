"""A tree that is read by the agent, stored, and restored equals its origin in every attribute."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from rehost.ids import new_id
from rehost.progress import silent
from rehost.replication.export import ExportReport, export_tree
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.replication.transfer import TransferReport, scan, transfer
from rehost.replication.tree import Tree
from rehost.source.connect import PathConnection, open_session
from rehost.source.inventory import Inventory, Volume
from tests.support.random_trees import Item, items, make_tree
from tests.support.trees import NODUMP, assert_same_tree, look_at_tree, make_nasty_tree, set_flags

IS_ROOT = os.geteuid() == 0
ROOT_VOLUME = Volume(mount_point="/", filesystem="ext4", size_bytes=1 << 40, used_bytes=1 << 30)
INVENTORY = Inventory(hostname="h", os_id="debian", architecture="x86_64", volumes=(ROOT_VOLUME,))


def take(origin: Path, store: Store, scratch: Path, parent_id: str | None = None) -> tuple[Snapshot, TransferReport]:
    """A snapshot of a directory, through the agent."""
    asked = Snapshot(
        id=new_id("n"),
        source_id=new_id("s"),
        created_at=datetime.now(UTC),
        inventory=INVENTORY,
        volumes=INVENTORY.volumes,
    )
    with open_session(PathConnection(root=str(origin))) as session:
        scanned = scan(session, INVENTORY, [], scratch, silent)
        return transfer(session, store, scanned, snapshot=asked, parent_id=parent_id, checksum=False, progress=silent)


def restore(store: Store, snapshot: Snapshot, directory: Path) -> ExportReport:
    return export_tree(Tree(store.files(snapshot.id), store), directory)


def test_a_short_hole_with_attributes_that_need_a_block_arrives_as_a_hole(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "hole").touch()
    os.truncate(origin / "hole", 2000)
    os.setxattr(origin / "hole", "user.long", b"x" * 3000)
    if not (origin / "hole").stat().st_blocks:
        pytest.skip("this filesystem counts no block for attributes")
    with Store.open(tmp_path / "store") as store:
        snapshot, _ = take(origin, store, tmp_path)
        rows = store.files(snapshot.id).select(["path", "size", "chunks"]).to_pylist()
    assert rows[1] == {"path": b"hole", "size": 2000, "chunks": []}


def test_a_nasty_tree_is_restored_in_every_attribute(tmp_path: Path) -> None:
    origin, restored = tmp_path / "origin", tmp_path / "restored"
    origin.mkdir()
    make_nasty_tree(origin)
    with Store.open(tmp_path / "store") as store:
        snapshot, report = take(origin, store, tmp_path)
        assert report.unreadable == () or not IS_ROOT
        done = restore(store, snapshot, restored)
    if IS_ROOT:
        assert done.shown == ()
        assert_same_tree(origin, restored)
    else:
        seen, again = look_at_tree(origin), look_at_tree(restored)
        readable = {name for name in seen if name != b"mode 0000"}
        assert {name: seen[name] for name in readable} == {name: again[name] for name in readable}


def test_a_second_snapshot_is_restored_as_the_tree_is_now(tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    make_nasty_tree(origin, huge=False)
    with Store.open(tmp_path / "store") as store:
        first, _ = take(origin, store, tmp_path)
        (origin / "a" / "x").write_bytes(b"changed\n")
        (origin / "a-b").unlink()
        (origin / "new").write_bytes(b"new\n")
        os.utime(origin / "a", ns=(5, 5))
        second, report = take(origin, store, tmp_path, first.id)
        assert report.files_changed == 2
        restore(store, second, tmp_path / "restored")
    assert_same_tree(origin, tmp_path / "restored")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(drawn=items(root=IS_ROOT), top_mode=st.sampled_from([0o755, 0o1777, 0o700]))
def test_random_trees_are_restored_in_every_attribute(drawn: list[Item], top_mode: int) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="rehost-round-trip-"))
    try:
        origin = scratch / "origin"
        origin.mkdir()
        make_tree(origin, drawn)
        origin.chmod(top_mode)
        with Store.open(scratch / "store") as store:
            snapshot, _ = take(origin, store, scratch)
            done = restore(store, snapshot, scratch / "restored")
        assert done.left_out == 0
        assert_same_tree(origin, scratch / "restored")
    finally:
        shutil.rmtree(scratch)


@pytest.mark.root
@pytest.mark.skipif(not IS_ROOT, reason="immutable files need root")
def test_files_that_nobody_may_change_are_restored_so(tmp_path: Path) -> None:
    immutable, append = 0x10, 0x20
    origin, restored = tmp_path / "origin", tmp_path / "restored"
    (origin / "shut").mkdir(parents=True)
    (origin / "shut" / "file").write_bytes(b"for ever")
    os.link(origin / "shut" / "file", origin / "second name")
    (origin / "log").write_bytes(b"longer and longer")
    try:
        set_flags(bytes(origin / "log"), append | NODUMP)
        set_flags(bytes(origin / "shut" / "file"), immutable)
        set_flags(bytes(origin / "shut"), immutable)
        with Store.open(tmp_path / "store") as store:
            snapshot, _ = take(origin, store, tmp_path)
            assert restore(store, snapshot, restored).shown == ()
        assert look_at_tree(restored)[b"shut/file"].flags == immutable
        assert_same_tree(origin, restored)
    finally:
        for top in (origin, restored):
            for path in (top / "shut", top / "shut" / "file", top / "log"):
                if path.exists():
                    set_flags(bytes(path), 0)

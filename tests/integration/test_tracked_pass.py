"""Passes over blocks with a tracker: what was written is read and nothing else, and the copy is the disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from rehost.agent import tracking as agent_tracking
from rehost.ids import new_id
from rehost.progress import silent
from rehost.replication.block_pass import copy_blocks
from rehost.replication.block_transfer import BlockCopy, parent_index, transfer_blocks
from rehost.replication.pass_plan import PassPlan
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.source.agent_session import open_agent
from rehost.source.block_agent import AgentBlocks
from rehost.source.block_session import BLOCK_BYTES, Area
from rehost.source.connect import PathConnection
from rehost.source.inventory import Disk, Partition
from rehost.source.tracked_pass import TrackedPass, remove_tracker
from tests.integration.test_tracking import DISK, Disk as LoopDisk, eventually, instances, reason, run
from tests.support.wire import inventory, volume

pytestmark = pytest.mark.skipif(bool(reason), reason=reason)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[LoopDisk]:
    """An ext4 with some files, not mounted."""
    made = LoopDisk(tmp_path / "disk.img")
    run("mkfs.ext4", "-q", "-F", made.path)
    tree = tmp_path / "mount"
    tree.mkdir()
    with mounted(made, tree):
        for number in range(60):
            (tree / f"f{number}").write_bytes(os.urandom(1 << 20))
    yield made
    run("losetup", "-d", made.path)


@contextlib.contextmanager
def mounted(disk: LoopDisk, tree: Path) -> Iterator[None]:
    """The filesystem, for as long as something is done to it."""
    run("mount", disk.path, str(tree))
    try:
        yield
    finally:
        run("umount", str(tree))


def passed(
    disk: LoopDisk, store: Store, job: str, folder: Path, parent: str | None, *, publish: bool = True
) -> tuple[str, BlockCopy, list[str]]:
    """One pass over a disk: the snapshot's id, the copy, and why all was read."""
    area = Area(0, 0, DISK, "partition", disk.path, 0, device="0_1", filesystem="ext4")
    snapshot = new_id("n")
    with open_agent(PathConnection(root="/")) as session:
        tracked = TrackedPass(session, job, [Disk(index=0, path=disk.path, size_bytes=DISK)], parent)
        copy = transfer_blocks(
            AgentBlocks(session),
            store,
            [area],
            folder / f"{snapshot}.parquet",
            parent=parent_index(store, parent),
            state=lambda area: "off",
            only=tracked.since_parent([area]),
            progress=silent,
        )
        assert tracked.since_last([area]) is not None
        if publish:
            snapshot = saved(store, copy, tracked)
    return snapshot, copy, tracked.reasons


def saved(store: Store, copy: BlockCopy, tracked: TrackedPass) -> str:
    """Publish a snapshot of this copy; its id."""
    snapshot = new_id("n")
    tracked.prepare(snapshot)
    store.save_snapshot(
        Snapshot(
            id=snapshot,
            source_id="s-" + "0" * 20,
            created_at=datetime.now(UTC),
            inventory=inventory(),
            volumes=(),
            regions=copy.regions,
        ),
        None,
        copy.path,
    )
    tracked.commit(snapshot)
    return snapshot


def rebuild(store: Store, copy: BlockCopy, disk: LoopDisk) -> Path:
    """A disk made of the blocks of the index."""
    rebuilt = disk.image.with_name("rebuilt.img")
    with rebuilt.open("wb") as file:
        file.truncate(DISK)
        for rows in copy.index.rows(0):
            for block, name in zip(rows.blocks.tolist(), rows.names, strict=True):
                file.seek(block * BLOCK_BYTES)
                file.write(store.read_chunk(name.tobytes()))
    return rebuilt


def check(store: Store, copy: BlockCopy, disk: LoopDisk) -> None:
    """Each block of the index holds what is on the disk, and the filesystem rebuilt from them is whole."""
    rebuilt, now = rebuild(store, copy, disk), disk.blocks()
    made = np.fromfile(rebuilt, np.uint8).reshape(-1, BLOCK_BYTES)
    for rows in copy.index.rows(0):
        assert (made[rows.blocks] == now[rows.blocks]).all()
    subprocess.run(["e2fsck", "-fn", str(rebuilt)], check=True, capture_output=True)


def test_passes_read_what_was_written(disk: LoopDisk, tmp_path: Path) -> None:
    """A first pass, one of little, one that is not published, one after it, and one after the tracker was killed."""
    job, tree = new_id("j"), tmp_path / "mount"
    with Store.open(tmp_path / "store") as store:
        try:
            first, copy, reasons = passed(disk, store, job, tmp_path, None)
            assert copy.report.areas[0].whole and reasons == []
            with mounted(disk, tree):
                (tree / "f3").write_bytes(b"3" * 300_000)
            second, copy, reasons = passed(disk, store, job, tmp_path, first)
            assert not copy.report.areas[0].whole and reasons == []
            assert copy.report.bytes_read < copy.regions[0].used_bytes / 10
            check(store, copy, disk)
            with mounted(disk, tree):
                (tree / "f4").write_bytes(b"4" * 300_000)
            passed(disk, store, job, tmp_path, second, publish=False)
            third, copy, reasons = passed(disk, store, job, tmp_path, second)
            assert not copy.report.areas[0].whole and reasons == []
            check(store, copy, disk)
            tracker = agent_tracking._connect(f"/run/rehost-track-{job}")
            assert tracker is not None
            os.kill(tracker.process(), 9)
            tracker.close()
            with mounted(disk, tree):
                (tree / "f5").write_bytes(b"5" * 300_000)
            _, copy, reasons = passed(disk, store, job, tmp_path, third)
            assert copy.report.areas[0].whole and reasons == ["the tracker has just been started"]
            check(store, copy, disk)
        finally:
            assert remove_tracker(PathConnection(root="/"), job) is None
    assert eventually(lambda: not instances())


def test_a_live_disk_is_copied_by_what_is_written(disk: LoopDisk, tmp_path: Path) -> None:
    """Two passes with freezes while a process writes into the mounted filesystem: what they make of it is whole."""
    job, tree = new_id("j"), tmp_path / "mount"
    part = Partition(device="0_1", path=disk.path, start=0, size_bytes=DISK, filesystem="ext4", can_block=True)
    facts = inventory().model_copy(
        update={
            "disks": (Disk(index=0, path=disk.path, size_bytes=DISK, partitions=(part,)),),
            "volumes": (volume(str(tree)).model_copy(update={"device": disk.path}),),
        }
    )
    plan = PassPlan((0,), frozenset({"0_1"}), (), facts.volumes)
    ended = threading.Event()

    def write() -> None:
        number = 0
        while not ended.is_set():
            (tree / f"w{number % 40}").write_bytes(os.urandom(50_000))
            number += 1
            ended.wait(0.002)  # in this very process it would take the time of who copies

    parent: str | None = None
    try:
        with Store.open(tmp_path / "store") as store, mounted(disk, tree):
            writer = threading.Thread(target=write)
            writer.start()
            try:
                for number in range(2):
                    folder = tmp_path / f"pass{number}"
                    folder.mkdir()
                    with open_agent(PathConnection(root="/")) as session:
                        tracked = TrackedPass(session, job, facts.disks, parent)
                        done = copy_blocks(
                            session, store, facts, plan, folder, parent_id=parent, tracked=tracked, progress=silent
                        )
                        assert tracked.reasons == [] and done.consistency[0].method == "freeze"
                        assert [one.areas[0].whole for one in done.passes] == [
                            not number,
                            *[False] * (len(done.passes) - 1),
                        ]
                        parent = saved(store, done.copy, tracked)
            finally:
                ended.set()
                writer.join()
        with Store.open(tmp_path / "store") as store:
            rebuilt = rebuild(store, done.copy, disk)
        # A frozen filesystem is clean but for its journal, which playing back empties.
        assert subprocess.run(["e2fsck", "-fp", str(rebuilt)], check=False).returncode in (0, 1)
        subprocess.run(["e2fsck", "-fn", str(rebuilt)], check=True, capture_output=True)
    finally:
        assert remove_tracker(PathConnection(root="/"), job) is None


def test_a_tracker_on_a_server_that_is_gone(tmp_path: Path) -> None:
    """People are told the one command that takes it off."""
    told = remove_tracker(PathConnection(root=str(tmp_path / "gone")), "j-1")
    assert told is not None and told.endswith("systemctl stop rehost-track-j-1")

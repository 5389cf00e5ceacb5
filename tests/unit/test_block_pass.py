"""A whole pass over a server's disk, blocks and files beside each other: into the store, and back to a disk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from image_builders.disk.build import build_disk
from image_builders.disk.regions import Blocks
from image_builders.disk.request import DiskRequest
from rehost.catalog.job import JobSpec
from rehost.catalog.rules import Asked, check
from rehost.regions.regions import region
from rehost.replication.open_store import open_store
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.replication.tree import Put, Tree
from rehost.run import find
from rehost.settings import settings
from rehost.source.connect import DiskConnection
from rehost.source.disk_session import DiskSession
from tasks.build import build_disk as build_stage
from tasks.run_pass import Pass, catalog, open_pass
from tasks.snapshot import snapshot
from tasks.transfer import transfer as transfer_stage
from tests.support.block_snapshots import digest_of, taken
from tests.support.ext4_judge import differences, read_filesystem
from tests.support.small_server import MIB, server, server_tree

pytestmark = pytest.mark.skipif(
    any(find(p) is None for p in ("qemu-img", "grub-mkimage", "mformat", "e2fsck"))
    or not Path("/usr/lib/grub/i386-pc/moddep.lst").is_file()
    or not Path("/usr/lib/grub/x86_64-efi/moddep.lst").is_file(),
    reason="qemu-img, mtools, e2fsprogs, grub-pc-bin or grub-efi-amd64-bin is not installed",
)
REQUEST = DiskRequest("m-1", "web", formats=("raw",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's disk as our builder makes one."""
    tree = server_tree().apply([Put(b"etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")])
    built = build_disk(tree, server(), replace(REQUEST, size_bytes=400 * MIB), tmp_path_factory.mktemp("source"))
    return Path(built.disks[0].location)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def built(store: Store, kept: Snapshot, folder: Path) -> Path:
    blocks = Blocks(kept.regions, store.table_path(kept.id, "blocks"))
    tree = Tree(store.files(kept.id), store)
    image = build_disk(tree, kept.inventory, REQUEST, folder, blocks=blocks)
    assert image.boot_modes == ("bios", "uefi")
    return Path(image.disks[0].location)


def test_a_disk_goes_in_blocks_into_the_store_and_comes_back_and_a_second_pass_finds_nothing_new(
    source: Path, store: Store, tmp_path: Path
) -> None:
    first, copied = taken(source, store, tmp_path / "pass", {"0_3", "0_4"})
    assert first.volumes == () and first.files_total == 1
    assert copied.bytes_new > MIB and {c.method for c in copied.consistency} == {"offline"}
    assert {region.device for region in first.regions} == {None, "0_1", "0_2", "0_3", "0_4"}
    assert store.snapshot(first.id).bytes_total == sum(region.used_bytes for region in first.regions)
    # What a filesystem does not use is zeros on this disk, so that the copy is the disk itself.
    assert digest_of(built(store, first, tmp_path / "image")) == digest_of(source)
    again, more = taken(source, store, tmp_path / "again", {"0_3", "0_4"}, first.id)
    assert more.bytes_new == 0 and more.copy.report.bytes_changed == 0
    assert again.parent_id == first.id and again.regions == first.regions


@pytest.mark.parametrize("chosen", ["0_3", "0_4"])
def test_one_volume_goes_by_files_and_the_rest_of_its_disk_in_blocks(
    source: Path, store: Store, tmp_path: Path, chosen: str
) -> None:
    """Once with /boot in blocks and the root as files, once the other way round."""
    kept, _ = taken(source, store, tmp_path / "pass", {chosen})
    (volume,) = kept.volumes
    assert volume.mount_point == ("/" if chosen == "0_3" else "/boot")
    held = {region.device for region in kept.regions}
    assert chosen in held and held == {None, "0_1", "0_2", chosen}
    raw = built(store, kept, tmp_path / "image")
    for partition in kept.inventory.disks[0].partitions[2:]:
        check = ["e2fsck", "-fn", f"{raw}?offset={partition.start}"]
        assert subprocess.run(check, capture_output=True, check=False).returncode == 0
        found = read_filesystem(raw, partition.start, partition.size_bytes)
        wanted = read_filesystem(source, partition.start, partition.size_bytes)
        assert found.keys() >= wanted.keys()
        if partition.device == chosen or volume.mount_point != "/":
            assert not differences(wanted, found)


class Quiet:
    """Progress of a stage outside of Prefect."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        pass

    def finish(self) -> None:
        pass


def test_the_stages_of_a_run_take_blocks_where_the_job_asks_for_them(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REHOST_HOME", str(tmp_path))
    monkeypatch.setattr(Pass, "progress", lambda this, stage: Quiet())
    connection = DiskConnection(kind="disk", disks=(str(source),))
    with DiskSession(connection) as session:
        inventory = session.inventory().model_copy(update={"architecture": "x86_64"})
    partitions = [{"device": "0_3", "block": True}, {"device": "0_4", "block": False}]
    asked = {
        "targets": {"image": {"formats": ["raw"]}},
        "disks": {"block_replication": True, "system": {"partitions": partitions}},
        "region_id": "local",
    }
    with catalog() as opened:
        registered = opened.add_source(connection, inventory)
        job = opened.create_job(JobSpec.model_validate({"source_id": registered.id, **asked}))
        assert not check(Asked(job, inventory, region(settings(), "local"), datetime.now(UTC)))
        run = opened.claim_run(job.id, flow_run_id="flow-1")
    with open_pass(run) as this, disable_run_logger():
        table, holding = snapshot.fn(this)
        snapshot_id, report = transfer_stage.fn(this, table, holding)
        image = build_stage.fn(this, snapshot_id)
    with open_store(settings()) as store:
        kept = store.snapshot(snapshot_id)
    assert [volume.mount_point for volume in kept.volumes] == ["/"]
    assert {region.device for region in kept.regions} == {None, "0_1", "0_2", "0_3"}
    assert {told.method for told in kept.consistency} == {"offline"}
    assert {told.mount_point for told in kept.consistency} == {volume.mount_point for volume in inventory.volumes}
    assert report.bytes_scanned > MIB and report.files_total == kept.files_total
    assert image.disks[0].virtual_size == 400 * MIB and image.boot_modes == ("bios", "uefi")
    root = inventory.disks[0].partitions[-1]
    assert b"var/big" in read_filesystem(Path(image.disks[0].location), root.start, root.size_bytes)

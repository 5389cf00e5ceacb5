"""A Debian server's disk, copied block by block into a store, boots from what is built of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.server import cache_folder, server_tree
from image_builders.disk.build import build_disk
from image_builders.disk.regions import Blocks
from image_builders.disk.request import DiskRequest
from rehost.replication.store import Store
from rehost.replication.tar_import import import_tar
from rehost.replication.tree import Tree
from rehost.run import find
from rehost.source.inventory import Inventory, Volume
from rehost.verification.accelerator import kernel_of
from rehost.verification.boot import verify_disk
from tests.support.block_snapshots import taken

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        any(find(p) is None for p in ("qemu-system-x86_64", "qemu-img", "grub-mkimage", "mformat", "mmdebstrap")),
        reason="QEMU, GRUB's tools, mtools or mmdebstrap are not installed",
    ),
]
SIZE = 4 << 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store.open(tmp_path_factory.mktemp("store"), compress_level=1) as opened:
        yield opened


def source_disk(store: Store, folder: Path) -> tuple[Path, bytes]:
    """The demo's server as a raw disk, and its kernel."""
    with server_tree().tar.open("rb") as stream:
        tree = Tree(import_tar(stream, store), store)
    root = Volume(mount_point="/", filesystem="ext4", size_bytes=SIZE, used_bytes=1 << 30)
    inventory = Inventory(hostname="shop", os_id="debian", architecture="x86_64", volumes=(root,))
    request = DiskRequest(image_id="m-1", name="shop", formats=("raw",), size_bytes=SIZE)
    image = build_disk(tree, inventory, request, folder)
    return Path(image.disks[0].location), kernel_of(tree) or b""


def test_a_server_s_disk_in_blocks_boots_and_its_probe_says_that_all_is_well(store: Store, tmp_path: Path) -> None:
    source, kernel = source_disk(store, tmp_path / "source")
    devices = [f"0_{number}" for number in range(1, 9)]
    snapshot, copied = taken(source, store, tmp_path / "pass", devices)
    assert snapshot.volumes == () and copied.copy.report.areas
    source.unlink()
    blocks = Blocks(snapshot.regions, store.table_path(snapshot.id, "blocks"))
    request = DiskRequest("m-2", "shop", formats=("raw",), size_bytes=SIZE + (1 << 30))
    tree = Tree(store.files(snapshot.id), store)
    image = build_disk(tree, snapshot.inventory, request, tmp_path / "image", blocks=blocks)
    assert image.boot_modes == ("bios", "uefi")
    assert not any("virtio" in warning for warning in image.warnings)
    (tmp_path / "vmlinuz").write_bytes(kernel)
    report = verify_disk(
        Path(image.disks[0].location),
        "raw",
        "bios",
        snapshot.inventory,
        evidence=tmp_path / "evidence",
        scratch=tmp_path,
        cache=cache_folder() / "accelerator.json",
        kernel=tmp_path / "vmlinuz",
    )
    assert report.status == "succeeded", report.error
    assert {check.name for check in report.checks if check.status == "passed"} >= {"kernel", "root mounted"}

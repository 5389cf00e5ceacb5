"""Whole images of a small server without a distribution: what is in them, and that a retry and a name do no harm."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from image_builders.disk import gpt
from image_builders.disk.build import build_disk
from image_builders.disk.plan import files_of, plan_disk
from image_builders.disk.record import DiskImage
from image_builders.disk.request import DiskRequest
from rehost.disk_formats import DiskFormat
from rehost.errors import BuildInitramfsLacksDriver, BuildNoBootLoader
from rehost.replication.manifest import FILES_SCHEMA
from rehost.run import find
from rehost.source.inventory import Inventory
from tests.support.ext4_judge import entries_of_table, read_filesystem
from tests.support.small_server import BOOT_UUID, ESP_DEVICE, MIB, ROOT_UUID, server, server_tree

needs_tools = pytest.mark.skipif(
    any(find(program) is None for program in ("qemu-img", "grub-mkimage", "mformat"))
    or not Path("/usr/lib/grub/i386-pc/moddep.lst").is_file()
    or not Path("/usr/lib/grub/x86_64-efi/moddep.lst").is_file(),
    reason="qemu-img, mtools, grub-pc-bin or grub-efi-amd64-bin is not installed",
)
FORMATS: tuple[DiskFormat, ...] = ("qcow2", "qcow2-plain", "raw", "vhd", "vhd-dynamic")
REQUEST = DiskRequest("m-1", "web", formats=("raw",), size_bytes=700 * MIB)


def test_a_plan_touches_nothing_and_shows_every_edit() -> None:
    tree = server_tree()
    before = tree.table()
    plan = plan_disk(tree, server(), REQUEST)
    assert tree.table().equals(before)
    for path in ("/etc/fstab", "/boot/grub/grub.cfg"):
        assert f"b{path}" in plan.diff
    assert f"+UUID={ROOT_UUID} / ext4" in plan.diff
    assert {fixup.name for fixup in plan.fixups} >= {"fstab", "boot loader"}


def test_each_filesystem_gets_its_own_rows_and_directories_to_mount_on() -> None:
    plan = plan_disk(server_tree(), server(), REQUEST)
    table = plan.tree.table()
    root, boot = plan.selection.filesystems
    paths = {f.mount_point: files_of(table, plan.selection, f)["path"].to_pylist() for f in (root, boot)}
    assert paths["/boot"][0] == b"" and b"grub/grub.cfg" in paths["/boot"] and b"efi" in paths["/boot"]
    assert b"efi/EFI/debian/grubx64.efi" not in paths["/boot"]
    assert b"boot" in paths["/"] and b"boots" in paths["/"] and b"boots/kept" in paths["/"]
    assert not [path for path in paths["/"] if path.startswith(b"boot/")]
    for own in (root, boot):
        files = files_of(table, plan.selection, own)
        assert files.schema.equals(FILES_SCHEMA) and files["path"].to_pylist() == sorted(paths[own.mount_point])


def test_an_initramfs_without_the_drivers_is_refused() -> None:
    with pytest.raises(BuildInitramfsLacksDriver, match="virtio_blk"):
        plan_disk(server_tree(modules=("ext4", "virtio_pci")), server(), REQUEST)


@needs_tools
def test_an_image_holds_what_was_planned_and_says_so(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    request = replace(REQUEST, name="../../evil/\0name", formats=FORMATS)
    tree, inventory = server_tree(), server()
    directory = tmp_path / "image"
    image = build_disk(tree, inventory, request, directory, lambda done, total, note="": told.append((done, total)))
    assert sorted(os.listdir(tmp_path)) == ["image"]
    files = ["disk-0.dynamic.vhd", "disk-0.plain.qcow2", "disk-0.qcow2", "disk-0.raw", "disk-0.vhd"]
    assert sorted(os.listdir(directory)) == [*files, "fixups.diff", "image.json"]
    assert DiskImage.model_validate_json((directory / "image.json").read_text()) == image
    assert [disk.format for disk in image.disks] == list(FORMATS)
    for disk in image.disks:
        made = subprocess.run(["sha256sum", disk.location], capture_output=True, text=True, check=True).stdout
        assert disk.sha256 == made.split()[0].lstrip("\\")
        assert disk.file_size == Path(disk.location).stat().st_size and disk.virtual_size == 700 * MIB
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == told[-1][1]
    raw = directory / "disk-0.raw"
    assert raw.stat().st_blocks * 512 < 200 * MIB
    assert "+UUID=" in (directory / "fixups.diff").read_text()

    plan = plan_disk(tree, inventory, request)
    with raw.open("rb") as file:
        table = gpt.read_table(file, 700 * MIB)
        file.seek(510)
        assert file.read(2) == b"\x55\xaa"
        for partition in image.partitions:
            entry = table.entries[partition.number - 1]
            assert (entry.start, entry.size_bytes) == (partition.start, partition.size_bytes)
    for filesystem, partition in ((f, p) for f in plan.selection.filesystems for p in image.partitions):
        if partition.mount_point != filesystem.mount_point or partition.role != "filesystem":
            continue
        wanted = entries_of_table(files_of(plan.tree.table(), plan.selection, filesystem), plan.tree)
        found = read_filesystem(raw, partition.start, partition.size_bytes)
        # GRUB's modules are put in at the end; and every ext4 has a lost+found.
        extra = {path for path in set(found) - set(wanted) if not path.startswith(b"grub/")}
        assert extra <= {b"lost+found"}
        differing = {path for path in wanted if found[path] != wanted[path]}
        assert not differing
    esp = next(p for p in image.partitions if p.role == "esp")
    listed = subprocess.run(
        ["mdir", "-i", f"{raw}@@{esp.start}", "-b", "-/", "::"], capture_output=True, text=True, check=True
    ).stdout
    assert "EFI/BOOT/BOOTX64.EFI" in listed
    told_of = subprocess.run(
        ["blkid", "-p", "-O", str(esp.start), "-S", str(esp.size_bytes), "-o", "export", raw],
        capture_output=True,
        text=True,
    ).stdout
    assert f"UUID={esp.uuid}" in told_of and "TYPE=vfat" in told_of
    assert esp.mount_point == "/boot/efi" and ESP_DEVICE


@needs_tools
def test_the_same_manifest_makes_the_same_bytes_and_a_retry_replaces_leftovers(tmp_path: Path) -> None:
    first = build_disk(server_tree(), server(), REQUEST, tmp_path / "a")
    (tmp_path / "b/scratch.partial").mkdir(parents=True)
    for leftover in ("image.json", "disk-0.raw", "disk-0.raw.partial", "disk-0.qcow2.partial", "scratch.partial/x"):
        (tmp_path / "b" / leftover).write_bytes(b"leftover")
    second = build_disk(server_tree(), server(), replace(REQUEST, image_id="m-2", name="other"), tmp_path / "b")
    assert first.disks[0].sha256 == second.disks[0].sha256
    assert sorted(os.listdir(tmp_path / "b")) == ["disk-0.raw", "fixups.diff", "image.json"]
    third = build_disk(server_tree(), server(), replace(REQUEST, formats=("qcow2",)), tmp_path / "b")
    assert sorted(os.listdir(tmp_path / "b")) == ["disk-0.qcow2", "fixups.diff", "image.json"]
    assert json.loads((tmp_path / "b/image.json").read_text())["disks"][0]["sha256"] == third.disks[0].sha256


@needs_tools
def test_a_build_that_fails_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_disk(server_tree(), server(), REQUEST, tmp_path)
    monkeypatch.setattr("image_builders.disk.grub.MODULES_PATH", tmp_path / "none")
    with pytest.raises(BuildNoBootLoader):
        build_disk(server_tree(), server(), REQUEST, tmp_path)
    assert os.listdir(tmp_path) == []


def test_boot_uuid_is_that_of_the_source() -> None:
    inventory: Inventory = server()
    assert str(plan_disk(server_tree(), inventory, REQUEST).selection.filesystems[1].uuid) == BOOT_UUID

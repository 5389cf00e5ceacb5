"""A switched-off server's disk images as a source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from rehost.errors import SourceUnsupported
from rehost.replication.bundles import Bundle
from rehost.replication.manifest import SCAN_SCHEMA
from rehost.settings import settings
from rehost.source.connect import DiskConnection, open_session
from rehost.source.disk_session import DiskSession
from rehost.source.session import FileContent, FileRequest

MIB = 1 << 20
ROOT_UUID = "0f0e0d0c-0b0a-4908-8706-050403020100"
needs = [
    pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")
    for program in ("mke2fs", "sgdisk", "qemu-img")
]
pytestmark = needs


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REHOST_HOME", str(tmp_path / "home"))
    settings.cache_clear()


def run(*argv: object) -> None:
    subprocess.run([str(word) for word in argv], check=True, capture_output=True)


def make_server(directory: Path, fstab: str = "") -> tuple[Path, Path]:
    """A system disk (GPT: BIOS boot, ESP, root, swap) and a data disk (no table) mounted at /srv/data."""
    root, data = directory / "root", directory / "data-tree"
    for path in ("etc/network", "sbin", "bin", "srv/data", "lib/modules/6.1.0-9-amd64", "lib/modules/6.1.0-13-amd64"):
        (root / path).mkdir(parents=True)
    (root / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian \\"12\\""\n')
    (root / "etc/hostname").write_text("old-server\n")
    (root / "etc/network/interfaces").write_text("auto eth0\niface eth0 inet dhcp\n")
    lines = [f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1", "LABEL=payload /srv/data ext4 noatime 0 2"]
    lines += ["PARTLABEL=esp /boot/efi vfat umask=0077 0 1", fstab]
    (root / "etc/fstab").write_text("\n".join(lines) + "\n")
    (root / "sbin/init").symlink_to("/lib/systemd/systemd")
    shutil.copy("/bin/true", root / "bin/sh")
    (root / "srv/data/hidden under the mount").touch()
    with (root / "sparse").open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"x" * 100)
        file.truncate(9 * MIB)
    (root / "linked").write_bytes(b"content" * 1000)
    os.link(root / "linked", root / "etc/linked too")
    for name in ("srv-old", "etc-old"):  # sort between a directory and what is in it
        (root / name).touch()
    (root / "var").mkdir()
    (data / "rows").mkdir(parents=True)
    (data / "rows/1").write_bytes(os.urandom(3 * MIB + 17))
    image, system, second = directory / "root.img", directory / "system.raw", directory / "data.raw"
    run("mke2fs", "-q", "-t", "ext4", "-U", ROOT_UUID, "-d", root, image, "40M")
    run("mke2fs", "-q", "-t", "ext4", "-L", "payload", "-d", data, second, "16M")
    with system.open("wb") as file:
        file.truncate(64 * MIB)
    run("sgdisk", "-n1:2048:+1M", "-t1:ef02", "-n2:0:+4M", "-t2:ef00", "-c2:esp", "-n3:0:+40M", "-n4:0:+8M", system)
    swap = bytearray(4096)
    swap[-10:] = b"SWAPSPACE2"
    with system.open("r+b") as file:
        file.seek(6 * MIB)
        file.write(image.read_bytes())
        file.seek(46 * MIB)
        file.write(swap)
    return system, second


def open_disks(*disks: Path) -> DiskSession:
    return DiskSession(DiskConnection(disks=tuple(map(str, disks))))


def scanned(session: DiskSession, exclude: Sequence[str] = ()) -> pa.Table:
    inventory = session.inventory()
    return pa.Table.from_batches(list(session.scan(inventory.volumes, exclude)), SCAN_SCHEMA)


def content_of(session: DiskSession, table: pa.Table, path: bytes) -> tuple[FileContent, bytes]:
    row = next(row for row in table.to_pylist() if row["path"] == path)
    store: dict[bytes, bytes] = {}

    def deliver(bundle: Bundle) -> None:
        raw, at = bundle.raw(), 0
        for name, length in zip(bundle.names, bundle.lengths, strict=True):
            store[name] = raw[at : at + length]
            at += length

    request = FileRequest(7, path, row["size"])
    (content,) = session.read([request], lambda names: [name not in store for name in names], deliver)
    assert content.error is None
    assert all(hashlib.sha256(raw).digest() == name for name, raw in store.items())
    whole = bytearray(content.size)
    for chunk in content.chunks:
        whole[chunk.offset : chunk.offset + chunk.length] = store[chunk.sha256]
    return content, bytes(whole)


def test_the_inventory_comes_from_tables_and_files(tmp_path: Path) -> None:
    system, data = make_server(tmp_path)
    with open_disks(system, data) as session:
        inventory = session.inventory()
    assert (inventory.hostname, inventory.os_id, inventory.os_version) == ("old-server", "debian", "12")
    assert inventory.kernel == "6.1.0-13-amd64"
    assert inventory.architecture == os.uname().machine
    assert inventory.init == "systemd"
    assert [volume.mount_point for volume in inventory.volumes] == ["/", "/srv/data"]
    assert inventory.volumes[0].uuid == ROOT_UUID
    assert inventory.volumes[0].size_bytes == 40 * MIB
    assert 0 < inventory.volumes[0].used_bytes < 40 * MIB
    first, second = inventory.disks
    assert (first.index, first.table, second.index, second.table) == (0, "gpt", 1, None)
    assert [part.device for part in first.partitions] == ["0_1", "0_2", "0_3", "0_4"]
    assert [part.filesystem for part in first.partitions] == [None, None, "ext4", "swap"]
    assert [part.mount_point for part in first.partitions] == [None, "/boot/efi", "/", None]
    assert [part.can_block for part in first.partitions] == [True, True, True, True]
    assert second.partitions[0].mount_point == "/srv/data"
    assert inventory.volumes[1].device == second.partitions[0].path


def test_the_system_disk_is_found_wherever_it_is_named(tmp_path: Path) -> None:
    system, data = make_server(tmp_path)
    with open_disks(data, system) as session:
        inventory = session.inventory()
    assert [disk.path for disk in inventory.disks] == [str(system), str(data)]
    assert inventory.disks[1].partitions[0].mount_point == "/srv/data"
    assert inventory.disks[0].partitions[2].mount_point == "/"


def test_scan_and_read_give_every_name_and_its_content(tmp_path: Path) -> None:
    with open_session(DiskConnection(disks=tuple(map(str, make_server(tmp_path))))) as session:
        assert isinstance(session, DiskSession)
        table = scanned(session)
        rows = {row["path"]: row for row in table.to_pylist()}
        assert rows[b""]["volume"] == 0
        assert rows[b"srv/data"]["volume"] == rows[b"srv/data/rows/1"]["volume"] == 1
        assert b"srv/data/hidden under the mount" not in rows
        assert rows[b"linked"]["ino"] == rows[b"etc/linked too"]["ino"]
        assert rows[b"sbin/init"]["target"] == b"/lib/systemd/systemd"
        assert table["path"].to_pylist() == sorted(rows)
        assert table["nlink"].to_pylist()[list(rows).index(b"linked")] == 2
        content, whole = content_of(session, table, b"srv/data/rows/1")
        assert whole == (tmp_path / "data-tree/rows/1").read_bytes()
        assert [chunk.offset for chunk in content.chunks] == [0, MIB, 2 * MIB, 3 * MIB]
        content, whole = content_of(session, table, b"sparse")
        assert whole == (tmp_path / "root/sparse").read_bytes()
        assert sum(chunk.length for chunk in content.chunks) <= 8192
        assert session.bytes_on_wire() > 3 * MIB


def test_what_is_gone_or_no_file_is_told(tmp_path: Path) -> None:
    with open_disks(*make_server(tmp_path)) as session:
        requests = [FileRequest(0, b"nothing", 1), FileRequest(1, b"etc", 1), FileRequest(2, b"linked/below", 1)]
        answers = list(session.read(requests, lambda names: [True] * len(names), lambda bundle: None))
    assert [(answer.index, answer.error) for answer in answers] == [(0, "vanished"), (1, "replaced"), (2, "vanished")]


def test_excluded_paths_are_left_out(tmp_path: Path) -> None:
    with open_disks(*make_server(tmp_path)) as session:
        paths = set(scanned(session, ["/srv/data", "/lib/modules/*"])["path"].to_pylist())
    assert b"linked" in paths
    assert b"lib/modules" in paths
    assert not [path for path in paths if path.startswith((b"srv/data", b"lib/modules/"))]


@pytest.mark.parametrize(("line", "word"), [("/dev/mapper/vg-home /home xfs defaults 0 2", "none of the disk images")])
def test_a_mount_without_reader_must_be_excluded(tmp_path: Path, line: str, word: str) -> None:
    with open_disks(*make_server(tmp_path, line)) as session:
        with pytest.raises(SourceUnsupported, match=word):
            scanned(session)
        assert scanned(session, ["/home"]).num_rows > 10


def test_a_disk_without_a_readable_root_says_what_is_there(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    content = bytearray(4 * MIB)
    content[:4] = b"XFSB"
    disk.write_bytes(content)
    with open_disks(disk) as session, pytest.raises(SourceUnsupported, match="holds xfs"):
        session.inventory()


@pytest.mark.parametrize("kind", ["qcow2", "vmdk", "vpc", "vhdx", "vdi"])
def test_other_formats_are_converted_and_nothing_stays(tmp_path: Path, kind: str) -> None:
    system, data = make_server(tmp_path)
    converted = tmp_path / f"system.{kind}"
    options = ["-o", "force_size=on"] if kind == "vpc" else []
    run("qemu-img", "convert", "-f", "raw", "-O", kind, *options, system, converted)
    with open_disks(system, data) as session:
        expected = scanned(session)
    with open_disks(converted, data) as session:
        assert scanned(session).equals(expected)
        assert list((tmp_path / "home/scratch").iterdir())
    assert not list((tmp_path / "home/scratch").iterdir())


def test_an_image_that_names_another_file_is_refused(tmp_path: Path) -> None:
    system, _ = make_server(tmp_path)
    overlay, external, flat = tmp_path / "overlay.qcow2", tmp_path / "external.qcow2", tmp_path / "flat.vmdk"
    run("qemu-img", "create", "-f", "qcow2", "-b", system, "-F", "raw", overlay)
    run("qemu-img", "create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data file'}", external, "64M")
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", system, flat)
    child = tmp_path / "child.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", system, tmp_path / "parent.vmdk")
    run("qemu-img", "create", "-f", "vmdk", "-b", tmp_path / "parent.vmdk", "-F", "vmdk", child)
    for image in (overlay, external, flat, child):
        with open_disks(image) as session, pytest.raises(SourceUnsupported, match=r"backing|another file|descriptor"):
            session.inventory()
    assert not (tmp_path / "home/scratch").exists() or not list((tmp_path / "home/scratch").iterdir())


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "missing"):
        with open_disks(path) as session, pytest.raises(SourceUnsupported):
            session.inventory()

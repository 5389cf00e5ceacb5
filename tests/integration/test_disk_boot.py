"""One image, started by both firmwares as far as it goes without a kernel: GRUB finds its menu and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from image_builders.disk.build import build_disk
from image_builders.disk.request import DiskRequest
from rehost.disk_formats import DiskFormat
from rehost.run import find
from rehost.verification.qemu import Machine, MachineSpec
from tests.support.small_server import MIB, VERSION, server, server_tree

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(
        any(find(program) is None for program in ("qemu-system-x86_64", "qemu-img", "grub-mkimage", "mformat")),
        reason="QEMU, GRUB's tools or mtools are not installed",
    ),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    request = DiskRequest("m-1", "web", formats=("qcow2", "vhd-dynamic"), size_bytes=700 * MIB)
    built = build_disk(server_tree(), server(), request, tmp_path_factory.mktemp("image"))
    return {disk.format: Path(disk.location) for disk in built.disks}


@pytest.mark.parametrize(("firmware", "disk_format"), [("bios", "vhd-dynamic"), ("uefi", "qcow2")])
def test_each_firmware_starts_grub_which_loads_the_kernel_by_the_menu(
    images: dict[str, Path], tmp_path: Path, firmware: Literal["bios", "uefi"], disk_format: DiskFormat
) -> None:
    spec = MachineSpec(disk=images[disk_format], disk_format=disk_format, firmware=firmware, network=False)
    with Machine(spec, scratch=tmp_path, console_log=tmp_path / "console.log") as machine:
        loading = machine.wait_for_console(f"Loading Linux {VERSION}".encode(), 120.0)
        # The file is found and read; that it is no kernel is what GRUB says of it.
        refused = machine.wait_for_console(b"error: .*(?:magic|kernel|header|signature)", 60.0)
    console = (tmp_path / "console.log").read_text("utf-8", "replace")[-2000:]
    assert loading and refused, console

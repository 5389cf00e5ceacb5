"""The main job on a real server: a Debian 12 guest becomes a disk image and a container image, and both prove it."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.shop import forget, migrate, the_shop_and_rehost


@pytest.mark.engine
@pytest.mark.qemu
@pytest.mark.timeout(5400)
def test_a_running_server_becomes_images_that_boot_by_both_firmwares_and_run_in_the_engine(tmp_path: Path) -> None:
    with the_shop_and_rehost(tmp_path) as (client, server):
        seen = migrate(client, server)  # raises where page or rows differ, or a digest does not match
        assert server.ssh("systemctl is-system-running").strip() == "running", "the source was touched"
        left = server.ssh("pgrep -fa '[p]ython3 '; find / -xdev -newer /srv/files/sparse -name '*rehost*'; true")
        assert not left.strip(), "something of Rehost stayed on the source"
    forget(tmp_path)
    assert seen["bytes_on_wire"] > 50e6
    assert (seen["disk_image"]["bios_boot"], seen["disk_image"]["uefi_boot"]) == ("succeeded", "succeeded")
    assert seen["container_image"]["run"] == "succeeded"
    assert seen["container_image"]["digest"].startswith("sha256:")

"""The inventory: facts of this machine and of a tree, and facts that no honest machine tells."""

from __future__ import annotations

import ast
import copy
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from rehost.agent import inventory_disks, superblocks
from rehost.agent.inventory import collect
from rehost.errors import SourceProtocol
from rehost.source.discover import inventory_of
from rehost.source.inventory import Inventory
from rehost.source.system_files import network_methods, parse_fstab, parse_os_release

GIB = 1 << 30
AGENT = Path(__file__).parents[2] / "rehost/agent"


def through_json(facts: dict[str, Any]) -> dict[str, Any]:
    """As the wire carries them."""
    return json.loads(json.dumps(facts, ensure_ascii=True))  # type: ignore[no-any-return]


def disk(name: str, number: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "path": f"/dev/{name}", "number": number, "kind": "disk", "size_bytes": size, **more}


def part(disk_name: str, index: int, number: str, start: int, size: int, **more: Any) -> dict[str, Any]:
    facts = disk(f"{disk_name}{index}", number, size, **more)
    return {**facts, "kind": "partition", "below": [disk_name], "partition": index, "start": start}


def mount(point: str, number: str, filesystem: str = "ext4", root: str = "/") -> dict[str, Any]:
    sizes = {"size_bytes": 10 * GIB, "used_bytes": GIB}
    return {"mount_point": point, "filesystem": filesystem, "number": number, "root": root, "options": "rw", **sizes}


def server() -> dict[str, Any]:
    """A server with its root on LVM over two disks, LUKS below a data volume, btrfs subvolumes, and bind mounts."""
    return {
        "format": 1,
        "running": True,
        "hostname": "web",
        "os_release": 'ID=debian\nVERSION_ID="12"\n',
        "architecture": "x86_64",
        "boot_mode": "uefi",
        "cores": 4,
        "memory_bytes": 8 * GIB,
        "devices": [
            disk("sda", "8:0", 100 * GIB),
            disk("sdb", "8:16", 20 * GIB, table="gpt", types={"1": "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"}),
            part("sdb", 1, "8:17", 1 << 20, GIB, filesystem="vfat", uuid="1234-ABCD"),
            part("sdb", 2, "8:18", 2 * GIB, 10 * GIB, filesystem="LVM2_member"),
            disk("sdc", "8:32", 20 * GIB, filesystem="LVM2_member"),
            part("sda", 1, "8:1", 1 << 20, 50 * GIB, filesystem="crypto_LUKS"),
            part("sda", 2, "8:2", 51 * GIB, 40 * GIB, filesystem="btrfs", label="pool"),
            {
                **disk("dm-0", "253:0", 10 * GIB, filesystem="ext4", uuid="root-uuid"),
                "kind": "lvm",
                "below": ["sdb2", "sdc"],
            },
            {**disk("dm-1", "253:1", 10 * GIB, filesystem="xfs"), "kind": "luks", "below": ["sda1"]},
        ],
        "mounts": [
            mount("/", "253:0"),
            mount("/boot/efi", "8:17", "vfat"),
            mount("/srv", "253:1", "xfs"),
            mount("/var/www", "253:0", "ext4", "/srv/www"),
            mount("/pool/a", "8:2", "btrfs", "/a"),
            mount("/pool/b", "8:2", "btrfs", "/b"),
            mount("/pool/a again", "8:2", "btrfs", "/a"),
        ],
        "interfaces": [
            {"name": "eth0", "addresses": ["192.0.2.7/24", "2001:db8::7/64"], "gateway": "192.0.2.1", "hardware": True},
            {"name": "docker0", "addresses": ["172.17.0.1/16"], "hardware": False},
        ],
        "network_files": {"etc/network/interfaces": "iface eth0 inet static\n address 192.0.2.7/24\n"},
        "listeners": [{"protocol": "tcp", "address": "::", "port": 80, "process": "nginx", "unit": "nginx.service"}],
        "failed_units": ["broken.service"],
    }


def test_the_system_disk_is_found_through_layers() -> None:
    inventory = inventory_of(server())
    assert [disk.path for disk in inventory.disks] == ["/dev/sdb", "/dev/sdc", "/dev/sda"]
    assert [part.device for part in inventory.disks[0].partitions] == ["0_1", "0_2"]
    assert inventory.disks[0].partitions[0].type == "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
    assert inventory.disks[0].partitions[0].mount_point == "/boot/efi"
    assert [(layer.kind, layer.members) for layer in inventory.layers] == [
        ("lvm", ("/dev/sdb2", "/dev/sdc")),
        ("luks", ("/dev/sda1",)),
    ]


def test_volumes_are_mounts_of_local_filesystems_once_each() -> None:
    volumes = inventory_of(server()).volumes
    assert [volume.mount_point for volume in volumes] == ["/", "/boot/efi", "/pool/a", "/pool/b", "/srv"]
    assert volumes[0].uuid == "root-uuid"
    assert volumes[0].device is None
    assert volumes[1].device == "/dev/sdb1"


def test_what_can_be_replicated_by_blocks_is_said_with_its_reason() -> None:
    facts = server()
    devices = {device["name"]: device for device in facts["devices"]}
    devices["sdc"]["filesystem"] = "linux_raid_member"
    facts["devices"] += [
        disk("sdd", "8:48", 50 * GIB, table="dos", types={"1": "0x05"}),
        part("sdd", 1, "8:49", 1 << 20, 9 * GIB),
        part("sdd", 5, "8:53", 2 << 20, GIB, filesystem="xfs", needs="a log on another device"),
        part("sdd", 6, "8:54", 2 * GIB, GIB, filesystem="ext4", unreadable=True),
        part("sdd", 7, "8:55", 3 * GIB, GIB),
        part("sdd", 8, "8:56", 4 * GIB, GIB),
        part("sdd", 9, "8:57", 5 * GIB, GIB, filesystem="swap"),
        {**disk("bcache0", "252:0", GIB), "kind": "virtual", "below": ["sdd8"]},
    ]
    parts = {part.path: part for disk in inventory_of(facts).disks for part in disk.partitions}
    for path in ("/dev/sda1", "/dev/sda2", "/dev/sdb2", "/dev/sdd7", "/dev/sdd9"):
        assert parts[path].can_block, parts[path]
        assert parts[path].cannot_block_reason is None
    for path, word in (
        ("/dev/sdb1", "mounted"),
        ("/dev/sdc", "mdraid"),
        ("/dev/sdd1", "extended"),
        ("/dev/sdd5", "log on another device"),
        ("/dev/sdd6", "read"),
        ("/dev/sdd8", "another device"),
    ):
        assert not parts[path].can_block
        assert word in (parts[path].cannot_block_reason or "")


def test_addresses_and_how_they_came() -> None:
    eth0, docker0 = inventory_of(server()).interfaces
    assert (eth0.method, docker0.method) == ("static", "unknown")
    assert eth0.addresses == ("192.0.2.7/24", "2001:db8::7/64")


def spoil(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        *above, last = path.split(".")
        at: Any = facts
        for name in above:
            at = at[int(name)] if name.isdigit() else at[name]
        at[int(last) if last.isdigit() else last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("devices", {"not": "a list"}),
        ("devices", [{}] * 2000),
        ("devices.0.size_bytes", -1),
        ("devices.0.size_bytes", 1 << 70),
        ("devices.0.size_bytes", "1"),
        ("devices.0.size_bytes", True),
        ("devices.0.kind", "toaster"),
        ("devices.0.name", "sdb"),
        ("devices.2.start", 19 * GIB + (1 << 29)),
        ("mounts.0.mount_point", "/elsewhere"),
        ("mounts.1.mount_point", "relative"),
        ("mounts.1.mount_point", "/../etc"),
        ("mounts.1.mount_point", "/a\nb"),
        ("mounts.1.mount_point", "/\udcff"),
        ("mounts.1.used_bytes", 11 * GIB),
        ("interfaces.0.addresses", ["nowhere"]),
        ("interfaces.0.gateway", "$(reboot)"),
        ("listeners.0.port", 70_000),
        ("listeners.0.protocol", "icmp"),
        ("hostname", "x" * 1000),
        ("hostname", ["web"]),
        ("architecture", "x86_64; rm -rf /"),
        ("cores", 0),
        ("failed_units", ["a"] * 5000),
        ("failed_units", [1]),
        ("os_release", "x" * (1 << 20)),
        ("tools", {"x": 1}),
    ],
)
def test_hostile_facts_are_refused(path: str, value: Any) -> None:
    facts = server()
    spoil(path, value)(facts)
    with pytest.raises(SourceProtocol):
        inventory_of(facts)


def test_text_is_cleaned_of_control_characters() -> None:
    facts = server()
    facts["hostname"] = "web\x1b[31m\n"
    facts["failed_units"] = ["a\rb"]
    inventory = inventory_of(facts)
    assert inventory.hostname == "web?[31m?"
    assert inventory.failed_units == ("a?b",)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_value_anywhere_gives_an_inventory_or_our_error(data: st.DataObject) -> None:
    facts = copy.deepcopy(server())
    at: Any = facts
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else list(range(len(at)))))
        below = at[key]
        if isinstance(below, dict | list) and below and data.draw(st.booleans()):
            at = below
            continue
        at[key] = data.draw(json_values)
        break
    try:
        inventory = inventory_of(facts)
    except SourceProtocol:
        return
    assert Inventory.model_validate_json(inventory.model_dump_json()) == inventory


# --- this machine and trees -----------------------------------------------------------------------------------


def test_this_machine_has_an_inventory() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        inventory = inventory_of(through_json(collect(b"/")))
        port = listening.getsockname()[1]
    assert inventory.architecture == os.uname().machine
    assert inventory.kernel == os.uname().release
    assert inventory.volumes[0].mount_point == "/"
    assert inventory.cores == os.cpu_count()
    mine = [listener for listener in inventory.listeners if listener.port == port]
    assert [(listener.protocol, listener.address) for listener in mine] == [("tcp", "127.0.0.1")]
    assert (mine[0].process or "").startswith(("pytest", "python"))


def test_a_tree_tells_of_itself_and_not_of_this_machine(tmp_path: Path) -> None:
    for path in ("etc/network", "bin", "lib/modules/5.10.0-2-amd64", "boot/grub/i386-pc", "usr/lib"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "boot/grub/i386-pc/core.img").touch()
    (tmp_path / "etc/os-release").symlink_to("/usr/lib/os-release")
    (tmp_path / "usr/lib/os-release").write_text("ID=alpine\nVERSION_ID=3.19\n")
    (tmp_path / "etc/hostname").write_text("# a comment\nin-the-tree\n")
    (tmp_path / "etc/fstab").write_text("UUID=0f0e0d0c-0b0a-4908-8706-050403020100 / xfs defaults 0 1\n")
    (tmp_path / "etc/shadow").symlink_to("/../../../../etc/passwd")
    shutil.copy("/bin/true", tmp_path / "bin/sh")
    os.mkfifo(tmp_path / "etc/network/interfaces")
    inventory = inventory_of(through_json(collect(os.fsencode(tmp_path))))
    assert (inventory.hostname, inventory.os_id) == ("in-the-tree", "alpine")
    assert (inventory.kernel, inventory.boot_mode) == ("5.10.0-2-amd64", "bios")
    assert inventory.architecture == os.uname().machine
    assert not (inventory.listeners or inventory.disks or inventory.interfaces)
    assert inventory.cores is None
    (root,) = inventory.volumes
    assert (root.mount_point, root.filesystem) == ("/", "xfs")
    assert root.uuid == "0f0e0d0c-0b0a-4908-8706-050403020100"


def test_an_empty_tree_has_an_inventory_too(tmp_path: Path) -> None:
    inventory = inventory_of(through_json(collect(os.fsencode(tmp_path))))
    assert (inventory.hostname, inventory.os_id, inventory.architecture) == ("unknown", "unknown", "unknown")


def test_odd_mount_points_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        rb"30 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
        rb"31 30 8:2 / /with\040space\011and\134slash rw - xfs /dev/sda2 rw",
        rb"32 30 0:5 / /proc rw - proc proc rw",
        rb"33 30 0:50 / /net rw - nfs4 server:/x rw",
        "34 30 8:3 / /\u00fcber rw master:2 propagate_from:3 - ext4 /dev/sda3 rw".encode(),
        b"a broken line",
    ]
    monkeypatch.setattr(inventory_disks, "read_bytes", lambda root, path, limit: b"\n".join(lines))
    found = inventory_disks.mounts(b"/")
    assert [mount["mount_point"] for mount in found] == ["/", "/with space\tand\\slash", "/\u00fcber"]


@pytest.mark.parametrize(
    ("argv", "filesystem"),
    [
        (["mke2fs", "-q", "-F", "-t", "ext2"], "ext2"),
        (["mke2fs", "-q", "-F", "-t", "ext3"], "ext3"),
        (["mke2fs", "-q", "-F", "-t", "ext4", "-L", "a label"], "ext4"),
        (["mkfs.vfat", "-n", "LABEL"], "vfat"),
        (["mkswap", "-L", "a label"], "swap"),
        (["mkfs.xfs", "-q"], "xfs"),
        (["mkfs.btrfs", "-q"], "btrfs"),
    ],
)
def test_superblocks_are_named_as_blkid_names_them(tmp_path: Path, argv: list[str], filesystem: str) -> None:
    if shutil.which(argv[0]) is None or shutil.which("blkid") is None:
        pytest.skip(f"{argv[0]} or blkid is not installed")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(512 << 20)
    subprocess.run([*argv, str(image)], check=True, capture_output=True)
    told = subprocess.run(
        ["blkid", "-p", "-o", "export", str(image)], check=True, capture_output=True, text=True
    ).stdout
    facts = dict(line.split("=", 1) for line in told.splitlines())
    with image.open("rb") as file:
        found = superblocks.probe(lambda at, length: os.pread(file.fileno(), length, at), 512 << 20)
    assert found["filesystem"] == filesystem == facts["TYPE"]
    assert found["uuid"] == facts.get("UUID")
    assert (found["label"] or "") == facts.get("LABEL", "").replace("\\ ", " ")


@pytest.mark.parametrize("module", sorted(path.name for path in AGENT.glob("*.py")))
def test_the_agent_is_python_3_6(module: str) -> None:
    ast.parse((AGENT / module).read_text(), feature_version=(3, 6))


# --- files of /etc --------------------------------------------------------------------------------------------


NETPLAN = """network:
  ethernets:
    ens3:
      dhcp4: true
    ens4:
      addresses:
        - 192.0.2.1/24
"""
CONNECTIONS = "etc/NetworkManager/system-connections/"
SCRIPTS = "etc/sysconfig/network-scripts/"


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("etc/network/interfaces", "iface a inet dhcp\n iface b inet static\n", {"a": "dhcp", "b": "static"}),
        ("etc/netplan/01.yaml", NETPLAN, {"ens3": "dhcp", "ens4": "static"}),
        (CONNECTIONS + "a", "[connection]\ninterface-name=a\n[ipv4]\nmethod=manual\n", {"a": "static"}),
        (CONNECTIONS + "b", "[connection]\nid=any\n[ipv4]\nmethod=auto\n", {"": "dhcp"}),
        ("etc/systemd/network/a.network", "[Match]\nName=en*\n[Network]\nDHCP=yes\n", {"": "dhcp"}),
        (
            "etc/systemd/network/b.network",
            "[Match]\nName=a b\n[Address]\nAddress=::1\n",
            {"a": "static", "b": "static"},
        ),
        (SCRIPTS + "ifcfg-a", 'BOOTPROTO="none"\nIPADDR=192.0.2.1\n', {"a": "static"}),
        (SCRIPTS + "ifcfg-b", "BOOTPROTO=dhcp\n", {"b": "dhcp"}),
    ],
)
def test_how_addresses_come_is_read_from_the_files(path: str, text: str, expected: dict[str, str]) -> None:
    assert network_methods({path: text}) == expected


@given(st.text(max_size=300))
def test_any_text_can_be_a_file_of_etc(text: str) -> None:
    for path in ("etc/network/interfaces", "etc/netplan/a.yaml", "etc/NetworkManager/system-connections/a"):
        network_methods({path: text})
    network_methods({"etc/systemd/network/a.network": text, "etc/sysconfig/network/ifcfg-a": text})
    parse_fstab(text)
    parse_os_release(text)


def test_secrets_stay_on_the_source(tmp_path: Path) -> None:
    directory = tmp_path / "etc/NetworkManager/system-connections"
    directory.mkdir(parents=True)
    (directory / "wifi").write_text("[wifi-security]\npsk=hunter2\n[ipv4]\nmethod=auto\n")
    sent = json.dumps(collect(os.fsencode(tmp_path)))
    assert "hunter2" not in sent
    assert "method=auto" in sent

"""What each fix-up promises, on small trees by hand."""

from __future__ import annotations

import pytest

from image_builders.disk.fixups import Context, Outcome, all_fixups, is_read, is_seen
from image_builders.disk.kernels import find_kernels
from image_builders.disk.request import DiskRequest
from image_builders.disk.selection import select
from rehost.errors import BuildNoKernel, BuildUnsupported
from rehost.replication.manifest import table_of
from rehost.replication.tree import Put, Tree
from rehost.source.inventory import Disk, Interface, Inventory, Layer, Partition, Volume
from tests.support.small_tree import small_tree

ROOT_UUID = "41111111-2222-4333-8444-555555555555"
BOOT_UUID = "11111111-2222-4333-8444-555555555555"
HOME_UUID = "31111111-2222-4333-8444-555555555555"
SWAP_UUID = "21111111-2222-4333-8444-555555555555"
GIB = 1 << 30

KERNEL: dict[str, bytes | str | None] = {"boot/vmlinuz-6.1.0-1-amd64": b"kernel", "boot/initrd.img-6.1.0-1-amd64": b"x"}


def server(*extra: Volume, command_line: str | None = None, swap: bool = False) -> Inventory:
    """A server with its root on /dev/vda1 and these volumes beside it."""
    partitions = [
        Partition(path="/dev/vda1", device="0_1", start=1 << 20, size_bytes=8 * GIB, filesystem="ext4", uuid=ROOT_UUID)
    ]
    if swap:
        partitions.append(
            Partition(path="/dev/vda2", device="0_2", start=9 * GIB, size_bytes=GIB, filesystem="swap", uuid=SWAP_UUID)
        )
    for number, volume in enumerate(extra, 3):
        if volume.device and volume.device.startswith("/dev/vda"):
            partitions.append(
                Partition(
                    path=volume.device,
                    device=f"0_{number}",
                    start=(10 + number) * GIB,
                    size_bytes=volume.size_bytes,
                    filesystem=volume.filesystem,
                    uuid=volume.uuid,
                )
            )
    data = Partition(path="/dev/vdb1", device="1_1", start=1 << 20, size_bytes=GIB, filesystem="ext4")
    root = Volume(
        mount_point="/", filesystem="ext4", size_bytes=8 * GIB, used_bytes=GIB, device="/dev/vda1", uuid=ROOT_UUID
    )
    return Inventory(
        hostname="web",
        os_id="debian",
        os_name="Debian GNU/Linux 12 (bookworm)",
        architecture="x86_64",
        kernel_command_line=command_line,
        interfaces=(Interface(name="lan0", mac="52:54:00:00:00:01", addresses=("192.0.2.7/24",), gateway="192.0.2.1"),),
        disks=(
            Disk(index=0, path="/dev/vda", size_bytes=40 * GIB, table="gpt", partitions=tuple(partitions)),
            Disk(index=1, path="/dev/vdb", size_bytes=2 * GIB, table="gpt", partitions=(data,)),
        ),
        volumes=(root, *extra),
    )


def volume(mount_point: str, device: str, uuid: str | None = None, filesystem: str = "ext4") -> Volume:
    return Volume(
        mount_point=mount_point, filesystem=filesystem, size_bytes=GIB, used_bytes=1 << 20, device=device, uuid=uuid
    )


def fixed(name: str, tree: Tree, inventory: Inventory) -> tuple[Tree, Outcome, Context]:
    """The tree after one fix-up."""
    request = DiskRequest("m-1", "web")
    context = Context(inventory, select(inventory, request), find_kernels(tree, inventory.hostname))
    fixup = next(f for f in all_fixups() if f.name == name)
    outcome = fixup.fix(tree, context)
    return tree.apply(outcome.changes), outcome, context


def text(tree: Tree, path: str) -> str:
    content = tree.read(path.encode())
    assert content is not None
    return content.decode("utf-8", "surrogateescape")


# --- fstab ----------------------------------------------------------------------------------------------------


def test_fstab_mounts_what_moves_by_uuid_and_comments_out_what_does_not() -> None:
    before = (
        b"# my comment\n"
        b"/dev/vda1  /  ext3  errors=remount-ro  0 1\n"
        b"LABEL=home\t/home\text4\tnodev,usrquota\t0\t2 # note\n"
        b"/dev/vdb1 /data ext4 defaults 0 2\n"
        b"UUID=ABCD-1234 /boot/efi vfat umask=0077 0 1\n"
        b"tmpfs /tmp tmpfs size=1g 0 0\n"
        b"/srv/a /srv/b none bind 0 0\n"
        b"nas:/x /nas nfs defaults 0 0\n"
        b"/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n"
        b"/dev/vda2 none swap sw,pri=5 0 0\n"
        b"/dev/vdb9 none swap sw 0 0\n"
        b"/swapfile none swap sw 0 0\n"
    )
    inventory = server(
        volume("/home", "/dev/vda3", HOME_UUID),
        volume("/boot/efi", "/dev/vda4", "ABCD-1234", "vfat"),
        volume("/data", "/dev/vdb1"),
        swap=True,
    )
    tree = small_tree({**KERNEL, "etc/fstab": before, "swapfile": b"x"})
    after, outcome, context = fixed("fstab", tree, inventory)
    assert text(after, "etc/fstab") == (
        "# my comment\n"
        f"UUID={ROOT_UUID}  /  ext4  errors=remount-ro  0 1\n"
        f"UUID={HOME_UUID}\t/home\text4\tnodev,usrquota\t0\t2 # note\n"
        "# Rehost: not on this disk: /dev/vdb1 /data ext4 defaults 0 2\n"
        f"UUID={context.selection.esp_uuid} /boot/efi vfat umask=0077 0 1\n"
        "tmpfs /tmp tmpfs size=1g 0 0\n"
        "/srv/a /srv/b none bind 0 0\n"
        "nas:/x /nas nfs defaults 0 0\n"
        "/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n"
        f"UUID={SWAP_UUID} none swap sw,pri=5 0 0\n"
        "# Rehost: not on this disk: /dev/vdb9 none swap sw 0 0\n"
        "/swapfile none swap sw 0 0\n"
    )
    assert [w for w in outcome.warnings if "/data" in w] and [w for w in outcome.warnings if "/nas" in w]


def test_a_missing_fstab_is_made() -> None:
    after, _, _ = fixed("fstab", small_tree(KERNEL), server(volume("/my data", "/dev/vda3", HOME_UUID), swap=True))
    assert text(after, "etc/fstab").splitlines() == [
        f"UUID={ROOT_UUID} / ext4 defaults 0 1",
        f"UUID={HOME_UUID} /my\\040data ext4 defaults 0 2",
        f"UUID={SWAP_UUID} none swap sw 0 0",
    ]


def test_a_hostile_fstab_neither_fails_nor_names_a_device() -> None:
    lines = [
        b"\xff\xfe\0 \x1b[31m",
        b"/dev/vda1",
        b"/dev/vda1 /",
        b"UUID=1 /\\057\\000 ext4",
        b"/dev/x /y " + b"a" * 9999,
    ]
    after, _, _ = fixed("fstab", small_tree({**KERNEL, "etc/fstab": b"\n".join(lines)}), server())
    own = text(after, "etc/fstab").splitlines()
    assert own[-1] == f"UUID={ROOT_UUID} / ext4 defaults 0 1"
    assert own[3].startswith("# Rehost: not on this disk")
    assert own[4].startswith("# Rehost: not on this disk")


def test_fixing_an_fstab_twice_changes_nothing_more() -> None:
    tree = small_tree({**KERNEL, "etc/fstab": b"/dev/vda1 / ext4 defaults 0 1\n/dev/zz /zz ext4 defaults 0 2\n"})
    once, _, _ = fixed("fstab", tree, server())
    _, outcome, _ = fixed("fstab", once, server())
    assert outcome.changes == ()


# --- boot loader ----------------------------------------------------------------------------------------------


def test_the_menu_names_every_kernel_newest_first_and_the_root_by_uuid() -> None:
    tree = small_tree(
        {
            "boot/vmlinuz-6.1.0-9-amd64": b"k",
            "boot/initrd.img-6.1.0-9-amd64": b"i",
            "boot/vmlinuz-6.1.0-10-amd64": b"k",
            "boot/initramfs-6.1.0-10-amd64.img": b"i",
            "boot/vmlinuz-0-rescue-abc": b"k",
        }
    )
    after, _, context = fixed("boot loader", tree, server(command_line="BOOT_IMAGE=/x root=/dev/vda1 ro quiet"))
    menu = text(after, "boot/grub/grub.cfg")
    kernels = [line.split()[1] for line in menu.splitlines() if line.strip().startswith("linux ")]
    assert kernels == [
        "'/boot/vmlinuz-6.1.0-10-amd64'",
        "'/boot/vmlinuz-6.1.0-9-amd64'",
        "'/boot/vmlinuz-0-rescue-abc'",
    ]
    assert menu.count(f"'root=UUID={ROOT_UUID}' 'ro' 'quiet'") == 2
    assert f"'root=PARTUUID={context.selection.root_partition_guid}'" in menu
    assert "initrd '/boot/initramfs-6.1.0-10-amd64.img'" in menu
    assert f"--set=root {ROOT_UUID}" in menu
    assert "'console=tty0' 'console=ttyS0,115200'" in menu


def test_a_boot_volume_of_its_own_is_searched_and_paths_begin_at_it() -> None:
    inventory = server(volume("/boot", "/dev/vda3", BOOT_UUID))
    after, _, _ = fixed("boot loader", small_tree(KERNEL), inventory)
    menu = text(after, "boot/grub/grub.cfg")
    assert f"--set=root {BOOT_UUID}" in menu and f"root=UUID={ROOT_UUID}" in menu
    assert "linux '/vmlinuz-6.1.0-1-amd64'" in menu and "initrd '/initrd.img-6.1.0-1-amd64'" in menu


def test_arguments_of_the_old_machine_are_left_out_and_others_kept() -> None:
    line = (
        "root=/dev/mapper/vg-root rd.lvm.lv=vg/root console=ttyS1 rw resume=/dev/vda2 ip=192.0.2.7::192.0.2.1 "
        'quiet quiet mitigations=off dyndbg="file drivers/usb/* +p" -- init-argument'
    )
    after, outcome, _ = fixed("boot loader", small_tree(KERNEL), server(command_line=line))
    linux = next(row for row in text(after, "boot/grub/grub.cfg").splitlines() if " linux " in row)
    assert linux.split(" 'ro' ")[1] == (
        "'quiet' 'mitigations=off' 'dyndbg=file drivers/usb/* +p' 'console=tty0' 'console=ttyS0,115200'"
    )
    assert any("ip=192.0.2.7" in warning for warning in outcome.warnings)


@pytest.mark.parametrize(
    "hostile", ["a='};reboot;{'", "b=$(x)", "c=`x`", "d=\\x", "e=\x00f", "g=\nhalt", "h=\u202e", "i" * 4000]
)
def test_a_hostile_command_line_cannot_leave_its_quotes(hostile: str) -> None:
    inventory = server(command_line=f"quiet {hostile} splash")
    after, _, _ = fixed("boot loader", small_tree(KERNEL), inventory)
    menu = text(after, "boot/grub/grub.cfg")
    clean, _, _ = fixed("boot loader", small_tree(KERNEL), server(command_line="quiet splash"))
    extra = set(menu.split()) - set(text(clean, "boot/grub/grub.cfg").split())
    assert extra <= {"'halt'", "'g='", "'e='", "'f='"} and all(word.count("'") == 2 for word in extra)
    assert menu.isascii() and max(map(len, menu.splitlines())) < 2048


def test_a_hostile_os_name_cannot_leave_the_title() -> None:
    inventory = server().model_copy(update={"os_name": "x' { halt }\n\x1b[0m"})
    after, _, _ = fixed("boot loader", small_tree(KERNEL), inventory)
    title = next(row for row in text(after, "boot/grub/grub.cfg").splitlines() if row.startswith("menuentry"))
    assert title == "menuentry 'x  halt 0m, Linux 6.1.0-1-amd64' {"


def test_kernels_of_odd_names_are_left_out() -> None:
    tree = small_tree({**KERNEL, "boot/vmlinuz-$(x)": b"k", "boot/vmlinuz-a b": b"k", "boot/vmlinuz-l": "/etc/passwd"})
    assert [kernel.version for kernel in find_kernels(tree, "web")] == ["6.1.0-1-amd64"]


def test_a_tree_without_a_kernel_is_refused() -> None:
    with pytest.raises(BuildNoKernel):
        find_kernels(small_tree({"boot/config-6.1": b"x"}), "web")


def test_update_grub_keeps_the_consoles() -> None:
    defaults = b'GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="mitigations=off"'
    after, _, _ = fixed("boot loader", small_tree({**KERNEL, "etc/default/grub": defaults}), server())
    changed = text(after, "etc/default/grub")
    assert changed.startswith(defaults.decode() + "\n")
    assert 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX console=tty0 console=ttyS0,115200"' in changed
    assert "'mitigations=off' 'quiet'" in text(after, "boot/grub/grub.cfg")
    again, _, _ = fixed("boot loader", after, server())
    assert text(again, "etc/default/grub") == changed


# --- network --------------------------------------------------------------------------------------------------

IFUPDOWN: dict[str, bytes | str | None] = {**KERNEL, "usr/sbin/ifup": b"x", "usr/sbin/dhclient": b"x"}
NETWORKD: dict[str, bytes | str | None] = {**KERNEL, "usr/lib/systemd/systemd-networkd": b"x"}


def test_ifupdown_static_becomes_dhcp_on_any_card_and_the_address_is_told() -> None:
    interfaces = (
        b"source /etc/network/interfaces.d/*\nauto lo lan0\niface lo inet loopback\n\n"
        b"iface lan0 inet static\n    address 192.0.2.7/24\n    gateway 192.0.2.1\n\n"
        b"auto br0\niface br0 inet manual\n    bridge_ports none\n"
    )
    extra = b"allow-hotplug ens3\niface ens3 inet dhcp\n"
    tree = small_tree({**IFUPDOWN, "etc/network/interfaces": interfaces, "etc/network/interfaces.d/x": extra})
    after, outcome, _ = fixed("network: ifupdown", tree, server())
    live = [
        line
        for line in text(after, "etc/network/interfaces").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    assert live == [
        "source /etc/network/interfaces.d/*",
        "auto lo",
        "iface lo inet loopback",
        "auto br0",
        "iface br0 inet manual",
        "    bridge_ports none",
        "allow-hotplug /en* /eth* /em* /p[0-9]*",
        "mapping en* eth* em* p[0-9]*",
        "    script /etc/network/rehost-mapping",
        "iface rehost inet dhcp",
    ]
    assert all(line.startswith("#") for line in text(after, "etc/network/interfaces.d/x").splitlines())
    script = after.get(b"etc/network/rehost-mapping")
    assert script is not None and script.mode & 0o777 == 0o755
    (warning,) = outcome.warnings
    assert "192.0.2.7/24" in warning and "192.0.2.1" in warning and "/etc/network/interfaces" in warning
    _, again, _ = fixed("network: ifupdown", after, server())
    assert again.changes == ()


def test_without_a_dhcp_client_networkd_takes_over() -> None:
    interfaces = b"iface lo inet loopback\nauto ens3\niface ens3 inet static\n address 192.0.2.7/24\n"
    tree = small_tree({**NETWORKD, "usr/sbin/ifup": b"x", "etc/network/interfaces": interfaces})
    tree, outcome, _ = fixed("network: ifupdown", tree, server())
    assert text(tree, "etc/network/interfaces").splitlines()[1:4] == [
        "# Rehost: auto ens3",
        "# Rehost: iface ens3 inet static",
        "# Rehost:  address 192.0.2.7/24",
    ]
    assert "rehost" not in text(tree, "etc/network/interfaces") and len(outcome.warnings) == 1
    after, outcome, _ = fixed("network: systemd-networkd", tree, server())
    assert "DHCP=yes" in text(after, "etc/systemd/network/10-rehost.network")
    link = after.get(b"etc/systemd/system/multi-user.target.wants/systemd-networkd.service")
    assert link is not None and link.is_symlink
    assert any("Name servers" in warning for warning in outcome.warnings)


def test_networkd_files_of_the_old_cards_are_set_aside() -> None:
    wants = "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
    static = b"[Match]\nName=ens3\n[Network]\nAddress=192.0.2.7/24\nGateway=192.0.2.1\n"
    bridge = b"[Match]\nName=br0\n[Network]\nAddress=10.0.0.1/24\n"
    folder = "etc/systemd/network"
    tree = small_tree({**NETWORKD, wants: "/x", f"{folder}/05-lan.network": static, f"{folder}/br0.network": bridge})
    after, outcome, _ = fixed("network: systemd-networkd", tree, server())
    names = {path.rpartition(b"/")[2] for path in after.children(folder.encode())}
    assert names == {b"05-lan.network.before-rehost", b"10-rehost.network", b"br0.network"}
    assert any("192.0.2.7/24" in warning for warning in outcome.warnings)


def test_netplan_gets_one_file_that_matches_any_card() -> None:
    old = b"network:\n  ethernets:\n    ens3:\n      addresses: [192.0.2.7/24]\n      gateway4: 192.0.2.1\n"
    tree = small_tree({**NETWORKD, "usr/sbin/netplan": b"x", "etc/netplan/50-cloud-init.yaml": old})
    after, outcome, _ = fixed("network: netplan", tree, server())
    assert after.children(b"etc/netplan") == [
        b"etc/netplan/50-cloud-init.yaml.before-rehost",
        b"etc/netplan/99-rehost.yaml",
    ]
    assert "192.0.2.7/24" in outcome.warnings[0] and "192.0.2.1" in outcome.warnings[0]
    _, other, _ = fixed("network: systemd-networkd", tree, server())
    assert other.changes == ()


def test_network_manager_profiles_lose_card_and_address() -> None:
    profile = (
        b"[connection]\nid=lan\ntype=ethernet\ninterface-name=ens3\n[ethernet]\nmac-address=52:54:00:00:00:01\n"
        b"[ipv4]\nmethod=manual\naddress1=192.0.2.7/24,192.0.2.1\ndns=192.0.2.2;\n"
    )
    wifi = b"[connection]\ntype=wifi\ninterface-name=wlan0\n"
    folder = "etc/NetworkManager/system-connections"
    wants = "etc/systemd/system/multi-user.target.wants/NetworkManager.service"
    tree = small_tree(
        {
            **KERNEL,
            "usr/sbin/NetworkManager": b"x",
            wants: "/x",
            f"{folder}/lan.nmconnection": profile,
            f"{folder}/wifi.nmconnection": wifi,
        }
    )
    after, outcome, _ = fixed("network: NetworkManager", tree, server())
    live = [line for line in text(after, f"{folder}/lan.nmconnection").splitlines() if not line.startswith("#")]
    assert live == ["[connection]", "id=lan", "type=ethernet", "[ethernet]", "[ipv4]", "method=auto"]
    assert text(after, f"{folder}/wifi.nmconnection").encode() == wifi
    assert "192.0.2.7/24" in outcome.warnings[0] and "192.0.2.1" in outcome.warnings[0]


def test_persistent_names_of_cards_go() -> None:
    tree = small_tree({**KERNEL, "etc/udev/rules.d/70-persistent-net.rules": b"x"})
    after, _, _ = fixed("network: names", tree, server())
    assert after.get(b"etc/udev/rules.d/70-persistent-net.rules") is None


# --- leftovers ------------------------------------------------------------------------------------------------


def test_what_a_start_needs_appears_and_what_it_would_wait_for_goes() -> None:
    tree = small_tree(
        {
            **KERNEL,
            "etc/initramfs-tools/conf.d/resume": b"RESUME=UUID=99999999-2222-4333-8444-555555555555\n",
            "etc/crypttab": b"# c\nvda5_crypt UUID=1 none luks\n",
            "boot/grub/device.map": b"(hd0) /dev/sda\n",
            "etc/machine-id": b"abc\n",
            "run": None,
        }
    )
    after, outcome, _ = fixed("leftovers", tree, server())
    for name, mode in (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("tmp", 0o1777)):
        entry = after.get(name.encode())
        assert entry is not None and entry.is_directory and entry.mode & 0o7777 == mode
    assert "RESUME=none" in text(after, "etc/initramfs-tools/conf.d/resume")
    assert text(after, "etc/crypttab") == "# c\n# Rehost: not encrypted here: vda5_crypt UUID=1 none luks\n"
    assert after.get(b"boot/grub/device.map") is None
    assert text(after, "etc/machine-id") == "abc\n"
    assert len(outcome.warnings) == 1


def test_a_resume_device_that_comes_along_is_kept() -> None:
    tree = small_tree({**KERNEL, "etc/initramfs-tools/conf.d/resume": f"RESUME=UUID={SWAP_UUID}\n".encode()})
    after, _, _ = fixed("leftovers", tree, server(swap=True))
    assert SWAP_UUID in text(after, "etc/initramfs-tools/conf.d/resume")


# --- selection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inventory",
    [
        server(volume("/data", "/dev/vda3", HOME_UUID, "xfs")),
        server(volume("/data/../x", "/dev/vda3", HOME_UUID)),
        server(volume("relative", "/dev/vda3", HOME_UUID)),
        server(volume("/x", "/dev/vda3"), volume("/x", "/dev/vda4")),
        server(volume("/boot", "/dev/vda3", "ABCD-1234", "vfat")),
        server().model_copy(update={"architecture": "aarch64"}),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_reason(inventory: Inventory) -> None:
    with pytest.raises(BuildUnsupported):
        select(inventory, DiskRequest("m-1", "web"))


def test_a_volume_on_lvm_on_the_system_disk_moves_and_one_on_a_data_disk_does_not() -> None:
    inventory = server(volume("/srv", "/dev/mapper/vg-srv", HOME_UUID), volume("/data", "/dev/mapper/vg-data"))
    layers = (
        Layer(kind="lvm", path="/dev/mapper/vg-srv", members=("/dev/vda1",)),
        Layer(kind="lvm", path="/dev/mapper/vg-data", members=("/dev/md0",)),
        Layer(kind="mdraid", path="/dev/md0", members=("/dev/vdb1",)),
    )
    selection = select(inventory.model_copy(update={"layers": layers}), DiskRequest("m-1", "web"))
    assert [f.mount_point for f in selection.filesystems] == ["/", "/srv"]
    assert [d.mount_point for d in selection.dropped] == ["/data"]


def test_every_fixup_says_what_it_is_for() -> None:
    fixups = all_fixups()
    assert len(fixups) >= 7 and len({f.name for f in fixups}) == len(fixups)
    assert all(f.about.endswith(".") for f in fixups)


def edited(tree: Tree, inventory: Inventory) -> Tree:
    """The tree after all fix-ups."""
    context = Context(inventory, select(inventory, DiskRequest("m-1", "web")), find_kernels(tree, "web"))
    for fixup in all_fixups():
        tree = tree.apply(fixup.fix(tree, context).changes)
    return tree


@pytest.mark.parametrize("kind", ["ifupdown", "networkd", "netplan", "NetworkManager"])
def test_the_part_of_a_tree_that_fixups_name_is_enough_for_them(kind: str) -> None:
    wants = "etc/systemd/system/multi-user.target.wants"
    files: dict[str, bytes | str | None] = {
        **KERNEL,
        "lib": "usr/lib",
        "sbin": "usr/sbin",
        "etc/fstab": b"/dev/vda1 / ext4 defaults 0 1\n/swap.img none swap sw 0 0\n/old none swap sw 0 0\n",
        "swap.img": b"x",
        "etc/default/grub": b"GRUB_TIMEOUT=1\n",
        "etc/network/interfaces": b"auto ens3\niface ens3 inet dhcp\n",
        "etc/network/interfaces.d/x": b"auto ens4\n",
        "etc/systemd/network/ens.network": b"[Match]\nName=ens3\n",
        "etc/resolv.conf": b"nameserver 192.0.2.1\n",
        "usr/lib/systemd/systemd-networkd": b"x",
        "usr/lib/systemd/system": None,
        "etc/udev/rules.d/70-persistent-net.rules": b"x",
        "etc/crypttab": b"a b c d\n",
        "boot/grub/device.map": b"x",
        "home/etc/fstab": b"not this one",
    }
    if kind == "ifupdown":
        files |= {"usr/sbin/ifup": b"x", "usr/sbin/dhclient": b"x"}
    elif kind == "netplan":
        files |= {"usr/sbin/netplan": "../share/netplan/netplan.script", "etc/netplan/1.yaml": b"network: {}\n"}
    elif kind == "NetworkManager":
        profile = b"[connection]\ntype=ethernet\ninterface-name=ens3\n"
        files |= {"usr/sbin/NetworkManager": b"x", f"{wants}/NetworkManager.service": "/x"}
        files |= {"etc/NetworkManager/system-connections/a": profile}
    whole = small_tree(files)
    rows = [entry for path in (b"", *whole.below(b"")) if is_seen(path) and (entry := whole.get(path)) is not None]
    part = Tree(table_of(rows), Unread(whole))
    assert part.get(b"home/etc/fstab") is None
    assert edited(part, server()).diff() == edited(whole, server()).diff() != ""


class Unread:
    """The content of a tree, of files that a fix-up says it reads."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        entries = [e for p in tree.below(b"") if is_read(p) and (e := tree.get(p)) is not None]
        self._known = {chunk.sha256 for entry in entries for chunk in entry.chunks}

    def read_chunk(self, sha256: bytes) -> bytes:
        assert sha256 in self._known, "a fix-up reads what it does not name"
        return self._tree.read_chunk(sha256)


# --- diffs ----------------------------------------------------------------------------------------------------


def test_a_diff_shows_neither_closed_files_nor_what_follows_a_password() -> None:
    tree = small_tree({"etc/a": b"user x\npassword=hunter2 b=c\nwpa-psk 12345678\n", "etc/b": b"x"})
    closed = tree.apply([Put(b"etc/b", b"top secret\n", mode=0o600)])
    assert "top secret" not in closed.diff() and "Not shown, closed to others: /etc/b" in closed.diff()
    assert "top secret" not in closed.apply([Put(b"etc/b", b"more\n", mode=0o644)]).diff(closed)
    assert "+ours" in tree.apply([Put(b"etc/c", b"ours\n", mode=0o600, public=True)]).diff()
    after = tree.apply([Put(b"etc/a", b"user y\npassword=hunter2 b=c\nwpa-psk 12345678\n")])
    assert "+user y" in after.diff() and " password=(not shown) b=c" in after.diff()
    assert "hunter2" not in after.diff() and "12345678" not in after.diff()


def test_the_diff_since_an_earlier_state_has_the_later_edits_alone() -> None:
    first = small_tree({"a": b"1\n", "b": b"1\n"}).apply([Put(b"a", b"2\n")])
    second = first.apply([Put(b"b", b"2\n")])
    assert second.diff(first).startswith("--- a/b") and "a/a" not in second.diff(first)
    assert second.apply([Put(b"a", b"3\n")]).diff(second).splitlines()[2:] == ["@@ -1 +1 @@", "-2", "+3"]

"""A Debian 12 guest with LVM, for what this machine's own kernel may not have: device mapper."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from demo.server import Server, cache_folder, server_tree
from rehost.run import run
from rehost.source.connect import SshConnection
from rehost.verification.accelerator import accelerator
from rehost.verification.qemu import Machine, MachineSpec

PACKAGES = ("lvm2", "thin-provisioning-tools", "xfsprogs")
_BOOT_SECONDS = 240.0
_BYTES = 6 << 30


def lvm_server_folder() -> Path:
    """Disk, kernel and initramfs of the guest, made the first time and kept."""
    tree = server_tree(PACKAGES)
    folder = tree.tar.parent / "lvm-server"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=tree.tar.parent) as name:
        made = Path(name) / "made"
        root = Path(name) / "root"
        made.mkdir()
        root.mkdir()
        run(["tar", "-C", str(root), "--xattrs", "-xpf", str(tree.tar)], timeout=300)
        (root / "etc/network/interfaces").write_text("auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n")
        for unit in ("ledger", "redis-server", "nginx", "cron"):
            (root / f"etc/systemd/system/multi-user.target.wants/{unit}.service").unlink(missing_ok=True)
        for kind in ("vmlinuz", "initrd.img"):
            (found,) = (root / "boot").glob(f"{kind}-*")
            shutil.copy(found, made / kind)
        shutil.copy(root / "etc/ssh/ssh_host_ed25519_key.pub", made / "host_key.pub")
        shutil.copy(tree.identity_file, made / "identity")
        disk = made / "disk.raw"
        with disk.open("wb") as stream:
            stream.truncate(_BYTES)
        run(["mkfs.ext4", "-q", "-d", str(root), str(disk)], timeout=300)
        made.rename(folder)
    return folder


@contextlib.contextmanager
def lvm_server(scratch: Path) -> Iterator[Server]:
    """The running guest; what it writes is thrown away."""
    made = lvm_server_folder()
    found = accelerator(cache_folder(), made / "vmlinuz")
    spec = MachineSpec(
        disk=made / "disk.raw",
        accelerator=found,
        forwards=(22,),
        kernel=made / "vmlinuz",
        initrd=made / "initrd.img",
        command_line="root=/dev/vda rw console=ttyS0 net.ifnames=0",
    )
    with Machine(spec, scratch=scratch, console_log=scratch / "console.log") as machine:
        if machine.wait_for_banner(22, b"SSH-2.0", _BOOT_SECONDS) is None:
            raise TimeoutError(f"the guest's sshd did not answer; see {scratch}/console.log")
        known_hosts = scratch / "known_hosts"
        key = " ".join((made / "host_key.pub").read_text().split()[:2])
        known_hosts.write_text(f"[127.0.0.1]:{machine.ports[22]} {key}\n")
        yield Server(machine, machine.ports[22], made / "identity", known_hosts)


def connection(server: Server) -> SshConnection:
    """How the guest is reached as a source."""
    return SshConnection(
        host="127.0.0.1",
        port=server.port,
        identity_file=str(server.identity_file),
        known_hosts=str(server.known_hosts),
    )

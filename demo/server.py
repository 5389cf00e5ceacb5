"""A real server to migrate: Debian 12 with services, state that keeps growing, and files of every kind.

`server_tree` makes the tree with mmdebstrap (once; kept under the cache folder), `build_server_disk` turns it into a
disk by Rehost's own disk builder, and `running_server` boots that disk and waits until its sshd answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from image_builders.disk.build import build_disk
from image_builders.disk.request import DiskRequest
from rehost.progress import silent
from rehost.replication.store import Store
from rehost.replication.tar_import import import_tar
from rehost.replication.tree import Tree
from rehost.run import run
from rehost.source.inventory import Inventory, Volume
from rehost.verification.accelerator import accelerator, kernel_of
from rehost.verification.qemu import Machine, MachineSpec

log = logging.getLogger(__name__)

HOSTNAME = "shop"
PACKAGES = (
    "linux-image-amd64",
    "systemd-sysv",
    "dbus",
    "udev",
    "openssh-server",
    "python3",
    "nginx-light",
    "redis-server",
    "cron",
    "ifupdown",
    "isc-dhcp-client",
    "iproute2",
    "kmod",
    "e2fsprogs",
    "libcap2-bin",
    "acl",
    "attr",
)
PAGE = "<!doctype html><title>shop</title><h1>The shop is open</h1>\n"

# One row every five seconds, for ever, each with the machine that wrote it: what a copy must hold of its source is a
# beginning of the source's list, without a gap. The sparse file is made here because a tar cannot say where holes are.
_LEDGER_SCRIPT = """#!/bin/sh
sparse=/srv/files/sparse
if [ ! -e $sparse ]; then
    truncate -s 512M $sparse
    printf start | dd of=$sparse conv=notrunc status=none
    printf middle | dd of=$sparse bs=1M seek=300 conv=notrunc status=none
fi
boot=$(cat /proc/sys/kernel/random/boot_id)
until [ "$(redis-cli ping)" = PONG ]; do sleep 1; done
n=$(redis-cli llen ledger)
while :; do
    n=$((n + 1))
    redis-cli rpush ledger "$n $boot" >/dev/null || n=$((n - 1))
    sleep 5
done
"""
_LEDGER_UNIT = """[Unit]
Description=Orders of the shop, a row every five seconds
After=redis-server.service
Requires=redis-server.service

[Service]
ExecStart=/usr/local/sbin/ledger
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""
_INTERFACES = """# The loopback network interface
auto lo
iface lo inet loopback

# The primary network interface
allow-hotplug ens3
iface ens3 inet dhcp
"""
_CUSTOMIZE = f"""
set -eu
root=$1
echo {HOSTNAME} > "$root/etc/hostname"
printf '127.0.0.1 localhost\\n127.0.1.1 {HOSTNAME}\\n' > "$root/etc/hosts"
echo '# /etc/fstab: static file system information.' > "$root/etc/fstab"
cat > "$root/etc/network/interfaces" <<'END'
{_INTERFACES}END
cat > "$root/var/www/html/index.html" <<'END'
{PAGE}END
cat > "$root/usr/local/sbin/ledger" <<'END'
{_LEDGER_SCRIPT}END
chmod 755 "$root/usr/local/sbin/ledger"
cat > "$root/etc/systemd/system/ledger.service" <<'END'
{_LEDGER_UNIT}END
sed -i 's/^appendonly no/appendonly yes/' "$root/etc/redis/redis.conf"
chroot "$root" systemctl enable ledger.service nginx.service redis-server.service ssh.service cron.service
chroot "$root" useradd --create-home --shell /bin/bash --uid 1000 alice
chroot "$root" useradd --create-home --shell /bin/bash --uid 60001 bob
mkdir -p "$root/srv/files/deep/er" "$root/etc/cron.d"
echo '*/5 * * * * alice date >> /home/alice/cron.log' > "$root/etc/cron.d/alice"
cp "$root/bin/cat" "$root/srv/files/capable"
chroot "$root" setcap cap_net_raw,cap_net_bind_service+ep /srv/files/capable
echo secret > "$root/srv/files/acl"
chroot "$root" setfacl -m u:alice:rw,g:60001:r /srv/files/acl
chroot "$root" setfacl -d -m u:bob:rwx /srv/files/deep
chroot "$root" setfattr -n user.origin -v shop /srv/files/acl
echo linked > "$root/srv/files/one"
ln "$root/srv/files/one" "$root/srv/files/deep/two"
ln "$root/srv/files/one" "$root/srv/files/deep/er/three"
ln -s ../one "$root/srv/files/deep/symlink"
mkfifo "$root/srv/files/fifo"
printf odd > "$root/srv/files/$(printf 'name with\\nnewline \\377')"
chown -R 1000:1000 "$root/srv/files/deep"
chmod 2775 "$root/srv/files/deep"
rm -f "$root"/etc/ssh/ssh_host_*
chroot "$root" ssh-keygen -A
mkdir -p -m 700 "$root/root/.ssh"
printf '%s\\n' "$REHOST_DEMO_KEY" > "$root/root/.ssh/authorized_keys"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
"""


@dataclass(frozen=True)
class ServerTree:
    """The tree of the server, and the key that its root lets in."""

    tar: Path
    identity_file: Path


def cache_folder() -> Path:
    """Where what is slow to make and may be lost is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rehost"


def server_tree(more: Sequence[str] = ()) -> ServerTree:
    """The Debian tree as a tar, made by mmdebstrap the first time and kept; the recipe is part of its name.

    `more` are packages beside those of the demo.
    """
    packages = (*PACKAGES, *more)
    recipe = hashlib.sha256("\0".join((*packages, _CUSTOMIZE)).encode()).hexdigest()[:16]
    folder = cache_folder() / f"server-{recipe}"
    tree = ServerTree(folder / "tree.tar", folder / "id_ed25519")
    if tree.tar.exists():
        return tree
    folder.mkdir(parents=True, exist_ok=True)
    if not tree.identity_file.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tree.identity_file)], timeout=30)
    public_key = tree.identity_file.with_suffix(".pub").read_text().strip()
    proxies = {name: os.environ[name] for name in ("http_proxy", "https_proxy") if name in os.environ}
    partial = folder / "tree.partial.tar"
    log.info("making the Debian 12 tree of the server (a minute or two, once)")
    run(
        [
            "mmdebstrap",
            "--variant=minbase",
            f"--include={','.join(packages)}",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            # The text itself and the key's content: as an ordinary user mmdebstrap runs the hook in a user namespace,
            # where the folders of that user cannot be read.
            f"--customize-hook={_CUSTOMIZE}",
            "bookworm",
            str(partial),
        ],
        timeout=1800,
        env={"REHOST_DEMO_KEY": public_key, **proxies},
    )
    partial.rename(tree.tar)
    return tree


@dataclass(frozen=True)
class ServerDisk:
    """The disk of the server, and what is known of it because it was made here."""

    disk: Path  # qcow2
    host_key: str  # the public host key of its sshd, as known_hosts has it behind the host
    kernel: Path
    identity_file: Path


def build_server_disk(tree: ServerTree, folder: Path) -> ServerDisk:
    """Make the server's disk from its tree, by Rehost's own disk builder. `folder` is empty and stays."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as store_folder,
        Store.open(Path(store_folder), compress_level=1) as store,
    ):
        with tree.tar.open("rb") as stream:
            files = import_tar(stream, store)
        store.flush()
        server = Tree(files, store)
        root = Volume(
            mount_point="/",
            filesystem="ext4",
            uuid="5e7e1f0a-3d0c-4f5b-9d0e-6a2a6c1e9b10",
            label="shop-root",
            size_bytes=8 << 30,
            used_bytes=1 << 30,
        )
        inventory = Inventory(hostname=HOSTNAME, os_id="debian", architecture="x86_64", volumes=(root,))
        request = DiskRequest(image_id="m-server", name="server", formats=("qcow2",), size_bytes=8 << 30)
        image = build_disk(server, inventory, request, folder, silent)
        kernel = folder / "vmlinuz"
        kernel.write_bytes(kernel_of(server) or b"")
        host_key = server.read(b"etc/ssh/ssh_host_ed25519_key.pub") or b""
    return ServerDisk(
        Path(image.disks[0].location), " ".join(host_key.decode("ascii").split()[:2]), kernel, tree.identity_file
    )


class Server:
    """The server while it runs."""

    def __init__(self, machine: Machine, port: int, identity_file: Path, known_hosts: Path) -> None:
        self.machine = machine
        self.port = port
        self.identity_file = identity_file
        self.known_hosts = known_hosts

    def ssh(self, command: str, timeout: float = 240) -> str:
        """What the command prints on the server."""
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "IdentityFile": str(self.identity_file),
            "IdentitiesOnly": "yes",
        }
        argv = ["ssh", "-F", "none", "-p", str(self.port)]
        argv += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return run([*argv, "root@127.0.0.1", command], timeout=timeout).stdout.decode()


@contextlib.contextmanager
def running_server(made: ServerDisk, folder: Path, cache: Path, timeout: float) -> Iterator[Server]:
    """Boot the server and wait until its sshd answers; it runs for the length of the block.

    `cache` remembers which accelerator works; `timeout` is in seconds. Raises TimeoutError.
    """
    found = accelerator(cache, made.kernel)
    spec = MachineSpec(disk=made.disk, disk_format="qcow2", writable=True, accelerator=found, forwards=(22,))
    with Machine(spec, scratch=folder, console_log=folder / "server-console.log") as machine:
        if machine.wait_for_banner(22, b"SSH-2.0", timeout) is None:
            raise TimeoutError(f"the server's sshd did not answer within {timeout} s; see {folder}/server-console.log")
        known_hosts = folder / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{machine.ports[22]} {made.host_key}\n")
        yield Server(machine, machine.ports[22], made.identity_file, known_hosts)

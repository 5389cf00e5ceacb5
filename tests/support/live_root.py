"""A live server without a machine of its own: Debian's sshd, Python and files on an ext4 of its own, in namespaces.

It costs seconds, where an emulated machine costs minutes. It shares the kernel and the network of the machine that runs
the tests, so its inventory has the kernel's version and the ports of that one.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo.registry import free_port
from demo.server import server_tree
from rehost.run import Process, run, spawn
from rehost.source.connect import SshConnection

HOSTNAME = "rows"
_SIZE_BYTES = 2 << 30
_UP_SECONDS = 60.0

# What a server without a screen, a sound card and other people's hardware needs none of; it is not unpacked.
_LEFT_OUT = (
    *(f"./usr/lib/modules/*/kernel/{part}" for part in ("sound", "drivers/gpu", "drivers/media", "drivers/net")),
    *(f"./usr/lib/modules/*/kernel/drivers/{part}" for part in ("infiniband", "scsi", "usb", "staging", "iio", "hid")),
    *(f"./lib/modules/*/kernel/{part}" for part in ("sound", "drivers/gpu", "drivers/media", "drivers/net")),
    *(f"./lib/modules/*/kernel/drivers/{part}" for part in ("infiniband", "scsi", "usb", "staging", "iio", "hid")),
    "./usr/share/man",
    "./usr/share/i18n",
)
_SERVICES = ("nginx", "redis-server", "ledger", "cron")  # of the tree; they would only make the boot longer

# The mounts and processes are those of the namespaces, and end with them.
_START = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
for name in null zero full random urandom tty; do touch "$1/dev/$name"; mount --bind /dev/$name "$1/dev/$name"; done
ln -s /proc/self/fd "$1/dev/fd"
mkdir -p "$1/run/sshd" "$1/dev/shm"
echo 'root=/dev/vda1 ro' > "$1/run/cmdline"
mount --bind "$1/run/cmdline" "$1/proc/cmdline"  # what this machine was started with is not for the copy
hostname "$2"
exec chroot "$1" /usr/sbin/sshd -D -e -p "$3" -o ListenAddress=127.0.0.1 -o UsePAM=no
"""


@dataclass(frozen=True)
class LiveRoot:
    """The server while it runs."""

    port: int
    identity_file: Path
    known_hosts: Path

    def connection(self) -> SshConnection:
        """How Rehost reaches it."""
        return SshConnection(
            host="127.0.0.1",
            port=self.port,
            identity_file=str(self.identity_file),
            known_hosts=str(self.known_hosts),
        )

    def ssh(self, command: str, timeout: float = 60) -> str:
        """What the command prints on the server."""
        options = ["BatchMode=yes", f"UserKnownHostsFile={self.known_hosts}", f"IdentityFile={self.identity_file}"]
        argv = ["ssh", "-F", "none", "-p", str(self.port)]
        argv += [word for option in options for word in ("-o", option)]
        return run([*argv, "root@127.0.0.1", command], timeout=timeout).stdout.decode()


@contextlib.contextmanager
def live_root(folder: Path) -> Iterator[LiveRoot]:
    """The server for the length of a block. Needs root, loop devices and mmdebstrap (once, for its tree)."""
    tree = server_tree()
    image, root = folder / "root.ext4", folder / "root"
    root.mkdir()
    with image.open("wb") as file:
        file.truncate(_SIZE_BYTES)
    run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], timeout=120)
    run(["mount", "-o", "loop", str(image), str(root)], timeout=60)
    try:
        left_out = [f"--exclude={pattern}" for pattern in _LEFT_OUT]
        argv = ["tar", "-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls"]
        run([*argv, *left_out, "-f", str(tree.tar), "-C", str(root)], timeout=600)
        for name in _SERVICES:
            (root / f"etc/systemd/system/multi-user.target.wants/{name}.service").unlink(missing_ok=True)
        (root / "etc/hostname").write_text(f"{HOSTNAME}\n")
        port = free_port()
        known_hosts = folder / "known_hosts"
        host_key = (root / "etc/ssh/ssh_host_ed25519_key.pub").read_text().split()[:2]
        known_hosts.write_text(f"[127.0.0.1]:{port} {' '.join(host_key)}\n")
        log = folder / "sshd.log"
        namespaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        with log.open("wb") as out:
            argv = [*namespaces, "sh", "-c", _START, "sh", str(root), HOSTNAME, str(port)]
            with spawn(argv, stdout=out, stderr=out) as process:
                _wait_for_sshd(log, process)
                yield LiveRoot(port, tree.identity_file, known_hosts)
    finally:
        run(["umount", "-l", str(root)], timeout=60)
        image.unlink()


def _wait_for_sshd(log: Path, process: Process) -> None:
    deadline = time.monotonic() + _UP_SECONDS
    while "Server listening on" not in (told := log.read_text(errors="replace")):
        assert process.popen.poll() is None and time.monotonic() < deadline, told
        time.sleep(0.1)


def missing() -> str | None:
    """Why this machine cannot have such a server; None: it can."""
    programs = ("mkfs.ext4", "mount", "unshare", "chroot", "mmdebstrap", "ssh", "tar")
    lacking = [name for name in programs if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
    if lacking:
        return f"needs {', '.join(lacking)}"
    return None if Path("/dev/loop-control").exists() else "needs loop devices"

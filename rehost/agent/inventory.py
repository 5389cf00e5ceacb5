"""The facts of a server, as it is found: what `discover.inventory_of` makes an inventory of.

`collect` reads files of /proc, /sys and /etc, the superblocks of block devices where it may, and asks systemd; it
changes nothing. Each part stands alone: what a machine lacks is left out, it never fails the rest. Text is sent as it
was read, bounded, and understood on the other side.
"""

import json
import os
import platform
import subprocess
from typing import Any, Callable, Dict, List, Optional

from rehost.agent import inventory_disks, inventory_files, inventory_network
from rehost.agent.inventory_files import read_text
from rehost.agent.protocol import RESULT

_PROGRAM_SECONDS = 20
_UNITS = 2000
_TOOLS = (
    "python3 rsync tar ssh systemctl ip lvm mdadm cryptsetup btrfs fsfreeze xfs_freeze zstd docker podman "
    "grub-install grub2-install update-grub grub2-mkconfig update-initramfs dracut mkinitcpio restic"
).split()


def serve(context: Any, body: bytes) -> None:
    """Answer one INVENTORY."""
    facts = json.dumps(collect(context.root), separators=(",", ":")).encode("ascii")
    context.output.send(RESULT, *context.codec(1).pack(facts))


def collect(root: bytes) -> Dict[str, Any]:
    """All facts of the running machine for root b"/", or of the tree below another root, as JSON-able values."""
    running = root == b"/"
    facts = {"format": 1, "running": running}  # type: Dict[str, Any]
    parts = _RUNNING if running else _TREE
    for name, part in parts.items():
        try:
            facts[name] = part(root)
        except Exception as error:  # one part less is better than no inventory
            facts.setdefault("left_out", []).append("%s: %s" % (name, type(error).__name__))
    return facts


def _run(argv: List[str]) -> str:
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C",
        "LC_ALL": "C",
        "SYSTEMD_COLORS": "0",
        "SYSTEMD_PAGER": "",
    }
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        timeout=_PROGRAM_SECONDS,
    )
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def _units(state: str) -> List[str]:
    if not os.path.isdir("/run/systemd/system"):
        return []
    kinds = ["--type=service"] if state == "running" else []
    argv = ["systemctl", "list-units", *kinds, "--state=" + state, "--plain", "--no-legend", "--no-pager", "--full"]
    lines = _run(argv).splitlines()
    # Older versions put a dot before a failed unit in spite of --plain.
    names = [line.lstrip("\u25cf* ").split(" ")[0] for line in lines if line.strip()]
    return names[:_UNITS]


def _hostname(root: bytes) -> str:
    return platform.node() or _tree_hostname(root)


def _tree_hostname(root: bytes) -> str:
    for line in read_text(root, b"etc/hostname", 4096).splitlines():
        if line.strip() and not line.startswith("#"):
            return line.strip()
    return ""


def _os_release(root: bytes) -> str:
    return read_text(root, b"etc/os-release") or read_text(root, b"usr/lib/os-release")


def _boot_mode(root: bytes) -> str:
    if os.path.isdir("/sys/firmware/efi"):
        return "uefi"
    # Only a PC without the interface of EFI is sure to have a BIOS.
    known = os.path.isdir("/sys/firmware") and platform.machine() in ("x86_64", "i686", "i586", "i386")
    return "bios" if known else "unknown"


def _memory(root: bytes) -> Optional[int]:
    for line in read_text(b"/", b"proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def _init(root: bytes) -> Optional[str]:
    if os.path.isdir("/run/systemd/system"):
        return "systemd"
    if os.path.isdir("/run/openrc"):
        return "openrc"
    name = read_text(b"/", b"proc/1/comm", 256).strip()
    return "sysvinit" if name == "init" else name or None


def _tools(root: bytes) -> Dict[str, str]:
    found = {}
    for name in _TOOLS:
        for directory in (b"usr/local/sbin", b"usr/local/bin", b"usr/sbin", b"usr/bin", b"sbin", b"bin"):
            path = inventory_files.resolve(root, directory + b"/" + name.encode("ascii"))
            if path is not None and os.path.isfile(path):
                found[name] = "/" + directory.decode("ascii") + "/" + name
                break
    return found


def _command_line(root: bytes) -> str:
    return read_text(b"/", b"proc/cmdline", 16384).strip()


_BOTH: Dict[str, Callable[[bytes], Any]] = {
    "os_release": _os_release,
    "fstab": lambda root: read_text(root, b"etc/fstab"),
    "tools": _tools,
    "network_files": inventory_files.network_files,
}
_RUNNING: Dict[str, Callable[[bytes], Any]] = dict(
    _BOTH,
    hostname=_hostname,
    kernel=lambda root: platform.release(),
    architecture=lambda root: platform.machine(),
    boot_mode=_boot_mode,
    kernel_command_line=_command_line,
    cores=lambda root: os.cpu_count(),
    memory_bytes=_memory,
    init=_init,
    interfaces=lambda root: inventory_network.interfaces(),
    listeners=lambda root: inventory_network.listeners(),
    devices=lambda root: inventory_disks.devices(),
    mounts=inventory_disks.mounts,
    failed_units=lambda root: _units("failed"),
    active_services=lambda root: _units("running"),
)
_TREE: Dict[str, Callable[[bytes], Any]] = dict(
    _BOTH,
    hostname=_tree_hostname,
    kernel=inventory_files.newest_kernel,
    architecture=inventory_files.architecture,
    boot_mode=inventory_files.boot_mode,
    init=inventory_files.init,
    mounts=inventory_disks.mounts,
)

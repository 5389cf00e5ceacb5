"""Which accelerator QEMU can use here, found by trying.

That /dev/kvm opens and makes a VM proves little: under nested virtualisation there are hosts where QEMU then aborts,
and others where a boot sector runs but every Linux kernel stands still with a core busy. So a real kernel is booted,
once, under a time limit; it must get to the end of its own start, where it panics for want of a root filesystem.
The answer is remembered for this host's kernel, CPU and QEMU.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Literal

from rehost.errors import ProgramFailed, ProgramTimeout
from rehost.replication.tree import Tree
from rehost.run import run
from rehost.verification.qemu import PROGRAM, Machine, MachineSpec

log = logging.getLogger(__name__)

Accelerator = Literal["kvm", "tcg"]

DEVICE = Path("/dev/kvm")
_TRIAL_SECONDS = 20.0  # a kernel that is accelerated needs two or three, even when the host is busy
_CACHE_BYTES = 1 << 20
_KERNEL_BYTES = 128 << 20
_BZIMAGE_MAGIC = b"HdrS"  # at 0x202: Documentation/arch/x86/boot.rst of Linux


def accelerator(cache: Path, kernel: Path | None) -> Accelerator:
    """`kvm` where a Linux kernel was seen to start with it, else `tcg`.

    `cache` is the file that remembers, `kernel` a Linux kernel (bzImage) for the trial. Without a kernel and without
    a memory the answer is `tcg`, and nothing is remembered. The trial lasts 20 seconds at most.
    """
    if not _usable():
        return "tcg"
    remembered = _read(cache).get(_host())
    if remembered in ("kvm", "tcg"):
        return "kvm" if remembered == "kvm" else "tcg"
    if kernel is None:
        return "tcg"
    found: Accelerator = "kvm" if starts(kernel, "kvm", _TRIAL_SECONDS) else "tcg"
    log.info("accelerator: %s, found by starting a kernel", found)
    remember(cache, found)
    return found


def starts(kernel: Path, with_accelerator: Accelerator, seconds: float) -> bool:
    """Whether that kernel gets to the end of its own start within that time."""
    spec = MachineSpec(
        accelerator=with_accelerator,
        kernel=kernel,
        command_line="console=ttyS0 panic=-1",
        memory_mib=512,
        cpus=1,
        network=False,
    )
    with tempfile.TemporaryDirectory(prefix="rehost-accelerator-") as scratch:
        try:
            with Machine(spec, scratch=Path(scratch), console_log=Path(scratch) / "console.log") as machine:
                # panic=-1 restarts at once, and -no-reboot makes that the end of QEMU.
                machine.wait_for_console(rb"Kernel panic - not syncing", seconds)
                ended = b"Linux version" in machine.console.since(0) and b"Kernel panic" in machine.console.since(0)
        except (ProgramFailed, ProgramTimeout) as error:
            log.info("accelerator: QEMU does not run with %s: %s", with_accelerator, error)
            return False
    return ended


def remember(cache: Path, found: Accelerator) -> None:
    """Keep the answer for this host. A file that cannot be written costs a trial at the next time, nothing else."""
    known = {**_read(cache), _host(): found}
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=cache.parent, prefix=cache.name, delete=False) as file:
            json.dump(known, file, indent=2, sort_keys=True)
        Path(file.name).replace(cache)


def kernel_of(tree: Tree, release: str | None = None) -> bytes | None:
    """The content of a Linux kernel under /boot of that tree: that of `release`, else the last by version; or None.

    It comes from a source, so it is for a guest alone.
    """
    names = [path for path in tree.children(b"boot") if path.startswith(b"boot/vmlinuz")]
    wanted = b"boot/vmlinuz-" + (release or "").encode()
    for path in sorted(names, key=lambda path: (path == wanted, _version(path)), reverse=True):
        content = tree.read(path, _KERNEL_BYTES)
        if content is not None and content[0x202:0x206] == _BZIMAGE_MAGIC:
            return content
    return None


def _version(path: bytes) -> list[int]:
    return [int(number[:18]) for number in re.findall(rb"\d+", path)]


def _usable() -> bool:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _host() -> str:
    """What the answer depends on, as one line."""
    version = run([PROGRAM, "--version"], timeout=30).stdout.decode("utf-8", "replace").partition("\n")[0]
    model = "unknown CPU"
    with contextlib.suppress(OSError):
        if found := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            model = found[1]
    return f"{os.uname().release} | {model} | {version}"


def _read(cache: Path) -> dict[str, str]:
    try:
        with cache.open("rb") as file:
            known = json.loads(file.read(_CACHE_BYTES))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str)} if isinstance(known, dict) else {}

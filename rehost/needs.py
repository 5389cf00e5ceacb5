"""What Rehost needs of the machine that it runs on, each with a check and a remedy.

`rehost doctor` shows them all; a run's preflight asks for those that its targets need.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rehost import run
from rehost.settings import Settings

Purpose = Literal["source", "image", "container", "verification", "service", "demo"]

_FREE_BYTES = 10 * 2**30


@dataclass(frozen=True)
class Answer:
    """Whether a need is met, and what was found."""

    met: bool
    found: str


@dataclass(frozen=True)
class Need:
    """One thing that must be there. `check` looks for it now."""

    name: str
    purposes: frozenset[Purpose]
    why: str
    remedy: str
    check: Callable[[Settings], Answer]


def _program(program: str) -> Callable[[Settings], Answer]:
    def check(_: Settings) -> Answer:
        found = run.find(program)
        return Answer(found is not None, found or "not found")

    return check


def _file(*candidates: str) -> Callable[[Settings], Answer]:
    def check(_: Settings) -> Answer:
        found = next((path for path in candidates if Path(path).exists()), None)
        return Answer(found is not None, found or "not found")

    return check


def _python(_: Settings) -> Answer:
    return Answer(sys.version_info >= (3, 11), sys.version.split()[0])


def _engine(_: Settings) -> Answer:
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=10)
        try:
            version = client.version()
        finally:
            client.close()
    except DockerException as error:
        return Answer(False, str(error).splitlines()[0][:120])
    return Answer(True, f"Docker {version.get('Version')} (API {version.get('ApiVersion')})")


def _home(configured: Settings) -> Answer:
    folder = configured.home
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return Answer(free >= _FREE_BYTES, f"{free / 2**30:.0f} GiB free in {folder}")


def _need(name: str, purposes: Iterable[Purpose], why: str, remedy: str, check: Callable[[Settings], Answer]) -> Need:
    return Need(name, frozenset(purposes), why, remedy, check)


def _apt(package: str) -> str:
    return f"apt-get install {package}"


NEEDS: tuple[Need, ...] = (
    _need("python", ["service"], "Rehost itself", "install Python 3.11 or later", _python),
    _need(
        "disk space",
        ["service"],
        "store, images and scratch",
        "make room, or set REHOST_HOME to a larger disk (10 GiB at least)",
        _home,
    ),
    _need("setpriv", ["service"], "programs end with Rehost", _apt("util-linux"), _program("setpriv")),
    _need("ssh", ["source"], "the way to a server", _apt("openssh-client"), _program("ssh")),
    _need("qemu-img", ["image", "verification"], "image formats", _apt("qemu-utils"), _program("qemu-img")),
    _need("grub-mkimage", ["image"], "boot loaders", _apt("grub-common"), _program("grub-mkimage")),
    _need(
        "GRUB for BIOS",
        ["image"],
        "images that BIOS boots",
        _apt("grub-pc-bin"),
        _file("/usr/lib/grub/i386-pc/boot.img"),
    ),
    _need(
        "GRUB for UEFI",
        ["image"],
        "images that UEFI boots",
        _apt("grub-efi-amd64-bin"),
        _file("/usr/lib/grub/x86_64-efi/normal.mod"),
    ),
    _need("mtools", ["image"], "the EFI system partition", _apt("mtools"), _program("mcopy")),
    _need("qemu", ["verification"], "test boots", _apt("qemu-system-x86"), _program("qemu-system-x86_64")),
    _need("OVMF", ["verification"], "test boots by UEFI", _apt("ovmf"), _file("/usr/share/OVMF/OVMF_CODE_4M.fd")),
    _need("debugfs", ["verification"], "the probe in a test boot", _apt("e2fsprogs"), _program("debugfs")),
    _need(
        "container engine",
        ["container"],
        "container images",
        "apt-get install docker.io, start it (systemctl start docker), and let your user talk to it",
        _engine,
    ),
    _need("uid maps", ["demo"], "mmdebstrap as an ordinary user", _apt("uidmap"), _program("newuidmap")),
    _need("sshd", ["demo"], "tests of the way to a server", _apt("openssh-server"), _program("sshd")),
    _need(
        "docker-registry", ["demo"], "the registry of the demo", _apt("docker-registry"), _program("docker-registry")
    ),
    _need("mmdebstrap", ["demo"], "the server of the demo", _apt("mmdebstrap"), _program("mmdebstrap")),
)


def unmet(purposes: Iterable[Purpose], configured: Settings) -> list[tuple[Need, Answer]]:
    """The needs of these purposes that are not met, with what was found."""
    wanted = frozenset(purposes)
    asked = [(need, need.check(configured)) for need in NEEDS if need.purposes & wanted]
    return [(need, answer) for need, answer in asked if not answer.met]

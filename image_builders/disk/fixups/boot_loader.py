"""GRUB's menu: every kernel with its initramfs, the root by UUID, consoles on the screen and on the serial port.

systemd starts a login on ttyS0 by itself where the kernel's command line names that console
(systemd-getty-generator), so no unit is enabled for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from image_builders.disk.fixups import Context, Fixup, Outcome
from image_builders.disk.kernels import Kernel
from image_builders.disk.selection import Selection
from rehost.replication.tree import Change, Put, Tree, printable

BOOT_LOADER = "boot loader"
CONSOLES = ("console=tty0", "console=ttyS0,115200")
_DEFAULTS = b"etc/default/grub"
_MARK = "# Rehost: the consoles of this image, the screen and the serial port."
_ARGUMENT_BYTES_MOST = 1500  # the kernel takes 2,048 in all
_SAFE = re.compile(r"(?:(?![\"'\\$`])[\x20-\x7e])+")  # printable ASCII that no quotes can be left by
_GONE = frozenset(
    # What names the old disk, the old network or the way in which the kernel was loaded there.
    (
        *("root", "rootfstype", "rootdelay", "BOOT_IMAGE", "initrd", "ro", "rw", "console", "break", "rd.break"),
        *("resume", "resume_offset", "noresume", "cryptdevice", "luks.uuid", "luks.name"),
        *(
            "rd.lvm",
            "rd.lvm.lv",
            "rd.lvm.vg",
            "rd.luks",
            "rd.luks.uuid",
            "rd.luks.name",
            "rd.md",
            "rd.md.uuid",
            "rd.dm",
        ),
        *("ip", "ifname", "nfsroot", "netroot", "bootdev", "rd.neednet", "rd.znet"),
    )
)
_NETWORK_ARGUMENTS = frozenset(("ip", "ifname", "nfsroot", "netroot"))


def grub_directory(tree: Tree) -> bytes:
    """Where GRUB's files lie in the tree: boot/grub, or boot/grub2 where the distribution calls it so."""
    return b"boot/grub2" if tree.get(b"boot/grub") is None and tree.get(b"boot/grub2") is not None else b"boot/grub"


def inside_filesystem(path: bytes, selection: Selection) -> str:
    """A path under /boot as GRUB sees it: from the root of the filesystem that holds it."""
    holder = selection.filesystem_of(path).mount_point.encode("utf-8", "surrogateescape").strip(b"/")
    inside = path[len(holder) :].strip(b"/") if holder else path
    return "/" + inside.decode("ascii")


def kernel_arguments(context: Context, defaults: str) -> tuple[list[str], list[str]]:
    """The arguments that a kernel of the source is started with, without those of the old machine; and warnings."""
    text = context.inventory.kernel_command_line
    if text is None:
        assigned = dict(_assignments(defaults))
        text = f"{assigned.get('GRUB_CMDLINE_LINUX', '')} {assigned.get('GRUB_CMDLINE_LINUX_DEFAULT', '')}"
    kept: list[str] = []
    warnings: list[str] = []
    left = _ARGUMENT_BYTES_MOST
    swaps = {f"resume=uuid={swap.uuid}" for swap in context.selection.swaps}
    for argument in _split(text):
        name = argument.partition("=")[0]
        shown = printable(argument.encode("utf-8", "surrogateescape"))[:80]
        if argument.lower() in swaps and argument not in kept:
            kept.append(argument)
        elif name in _GONE:
            if name in _NETWORK_ARGUMENTS:
                warnings.append(f"The kernel argument {shown} of the source's network is left out.")
        elif not _SAFE.fullmatch(argument) or left < len(argument) + 1:
            warnings.append(f"The kernel argument {shown} cannot be carried over and is left out.")
        elif argument not in kept:
            left -= len(argument) + 1
            kept.append(argument)
    return kept, warnings


def _split(text: str) -> Iterator[str]:
    """Arguments as the kernel splits them: at white space, but not between double quotes."""
    for match in re.finditer(r'(?:[^\s"]|"[^"]*"?)+', text[:8192]):
        argument = match[0].replace('"', "")
        if argument == "--":  # what follows is for init
            return
        if argument:
            yield argument


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """NAME="value" lines of a shell file; what a shell would have to work out stays as it stands."""
    for match in re.finditer(r"^\s*([A-Z_]+)=(\"[^\"\n]*\"|'[^'\n]*'|[^\s#;]*)", text, re.MULTILINE):
        value = match[2]
        yield match[1], value[1:-1] if value[:1] in "\"'" and len(value) > 1 else value


def _quote(text: str) -> str:
    """A word of GRUB's script language that is nothing but itself. The caller has checked it against _SAFE."""
    assert _SAFE.fullmatch(text)
    return f"'{text}'"


def _menu(context: Context, arguments: list[str], title: str) -> str:
    selection = context.selection
    lines = [
        "# Made by Rehost for the kernels of this image. update-grub makes a new one.",
        "set default=0",
        "set timeout=2",
        "if serial --unit=0 --speed=115200; then",
        "  terminal_input console serial",
        "  terminal_output console serial",
        "fi",
        "",
    ]
    for kernel in context.kernels:
        boot_uuid = selection.filesystem_of(kernel.path).uuid
        words = [_root_argument(kernel, selection), "ro", *arguments]
        lines += [
            f"menuentry {_quote(f'{title}, Linux {kernel.version}')} {{",
            f"  search --no-floppy --fs-uuid --set=root {boot_uuid}",
            f"  echo {_quote(f'Loading Linux {kernel.version} ...')}",
            f"  linux {_quote(inside_filesystem(kernel.path, selection))} {' '.join(_quote(w) for w in words)}",
        ]
        if kernel.initramfs is not None:
            lines.append(f"  initrd {_quote(inside_filesystem(kernel.initramfs, selection))}")
        lines += ["}", ""]
    return "\n".join(lines)


def _root_argument(kernel: Kernel, selection: Selection) -> str:
    # The kernel itself knows partitions' ids, not filesystems': those are found by an initramfs.
    if kernel.initramfs is None:
        return f"root=PARTUUID={selection.root_part_uuid}"
    return f"root=UUID={selection.root.uuid}"


def _fix(tree: Tree, context: Context) -> Outcome:
    defaults_bytes = tree.read(_DEFAULTS)
    defaults = (defaults_bytes or b"").decode("utf-8", "surrogateescape")
    arguments, warnings = kernel_arguments(context, defaults)
    if not context.selection.swaps and tree.get(b"etc/initramfs-tools") is not None:
        arguments.append("noresume")  # Debian's initramfs may remember a swap area and would wait for it
    name = context.inventory.os_name or context.inventory.os_id
    title = "".join(c for c in name if c.isascii() and (c.isalnum() or c in " ./()-"))[:60].strip() or "Linux"
    menu = _menu(context, [*arguments, *CONSOLES], title)
    changes: list[Change] = [Put(grub_directory(tree) + b"/grub.cfg", menu.encode("ascii"), mode=0o600, public=True)]
    if defaults_bytes is not None and _MARK not in defaults:
        lines = [
            _MARK,
            f'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(CONSOLES)}"',
            'GRUB_TERMINAL="console serial"',
            'GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"',
        ]
        end = b"" if defaults_bytes.endswith(b"\n") else b"\n"
        changes.append(Put(_DEFAULTS, defaults_bytes + end + "\n".join(lines).encode() + b"\n"))
    return Outcome(tuple(changes), tuple(warnings))


FIXUP = Fixup(
    name=BOOT_LOADER,
    order=20,
    about=(
        "GRUB's menu is made anew for every kernel under /boot: it finds the root by UUID, keeps the kernel arguments "
        "of the source, and speaks on the screen and on the first serial port; /etc/default/grub says the same, so "
        "that update-grub keeps it."
    ),
    fix=_fix,
    reads=(_DEFAULTS, b"boot/grub/grub.cfg", b"boot/grub2/grub.cfg"),
    sees=(b"boot/grub", b"boot/grub2", b"etc/initramfs-tools"),
)

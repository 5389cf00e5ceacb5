"""The console is read into causes: each tell-tale as firmware, loaders, kernels and systemd print it."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from rehost.errors import (
    BootEmergencyMode,
    BootKernelPanic,
    BootNoBootLoader,
    BootNoRoot,
    VerificationError,
)
from rehost.verification.console import Reading, Stage, cleaned, read

SEABIOS = (
    b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2-debian-1.16.2-1)\r\nBooting from Hard Disk...\r\n"
    b"Boot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n"
)
OVMF_SHELL = (
    b'\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: failed to load Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x4,0x0): '
    b'Not Found\r\nBdsDxe: loading Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9)\r\n'
    b'BdsDxe: starting Boot0002 "EFI Internal Shell" from Fv(7CB8BDC9)\r\n'
)
OVMF_NOTHING = (
    b"BdsDxe: No bootable option or device was found.\r\nBdsDxe: Press any key to enter the Boot Manager Menu.\r\n"
)
GRUB_RESCUE = (
    b"GRUB loading...\r\nWelcome to GRUB!\r\n\r\nerror: no such device: 11111111-2222-3333-4444-555555555555.\r\n"
    b"Entering rescue mode...\r\ngrub rescue> "
)
GRUB_NO_KERNEL = (
    b"Welcome to GRUB!\r\nerror: file `/boot/vmlinuz-6.1.0' not found.\r\nerror: you need to load the kernel first.\r\n"
    b"\r\nPress any key to continue..."
)
GRUB_SHELL = (
    b"Welcome to GRUB!\r\n\x1b[2J   GNU GRUB  version 2.06\r\n"
    b"   Minimal BASH-like line editing is supported. For the\r\n"
)
KERNEL = b"[    0.000000] Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org) #1 SMP\r\n"
PANIC = (
    KERNEL
    + b"[   21.3] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000000\r\n"
    + b"[   21.3] CPU: 0 PID: 1 Comm: x\r\n"
)
PANIC_VFS = (
    KERNEL
    + b'[    2.1] VFS: Cannot open root device "UUID=1111" or unknown-block(0,0): error -6\r\n'
    + b"[    2.2] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
)
INITRAMFS = (
    KERNEL
    + b"Gave up waiting for root file system device.  Common problems:\r\n - Boot args (cat /proc/cmdline)\r\n"
    + b"ALERT! UUID=9999-1 does not exist. Dropping to a shell!\r\n\r\nBusyBox v1.35.0\r\n(initramfs) "
)
DRACUT = (
    KERNEL
    + b"[  190.1] dracut-initqueue[421]: Warning: dracut-initqueue: timeout, still waiting for following hooks:\r\n"
    + b"[  190.2] dracut-initqueue[421]: Warning: Could not boot.\r\n"
)
DRACUT_SHELL = (
    KERNEL
    + b"[\x1b[0;1;33mDEPEND\x1b[0m] Dependency failed for \x1b[0;1;39m/sysroot\x1b[0m.\r\n"
    + b'Generating "/run/initramfs/rdsosreport.txt"\r\n'
)
MKINITCPIO = (
    KERNEL + b"ERROR: device 'UUID=9' not found. Skipping fsck.\r\nERROR: Failed to mount 'UUID=9' on real root\r\n"
)
EMERGENCY = (
    KERNEL
    + b"Welcome to \x1b[1mDebian GNU/Linux 12 (bookworm)\x1b[0m!\r\n"
    + b"[\x1b[0;1;31m TIME \x1b[0m] Timed out waiting for device \x1b[0;1;39mdev-disk-by\\x2duuid-abc\x1b[0m.\r\n"
    + b"[\x1b[0;1;38;5;185mDEPEND\x1b[0m] Dependency failed for \x1b[0;1;39msrv.mount\x1b[0m - /srv.\r\n"
    + b"[\x1b[0;1;38;5;185mDEPEND\x1b[0m] Dependency failed for \x1b[0;1;39mlocal-fs.target\x1b[0m"
    + b" - Local File Systems.\r\n"
)
EMERGENCY_NARROW = KERNEL + "[DEPEND] Dependency failed for loca…s.target - Local File Systems.\r\n".encode()
EMERGENCY_QUIET = KERNEL + b'You are in emergency mode. After logging in, type "journalctl -xb" to view\r\n'
LOCKED = KERNEL + b"Cannot open access to console, the root account is locked.\r\n"
PASSWORD = KERNEL + b"Give root password for maintenance\r\n(or press Control-D to continue): "
LOGIN = (
    SEABIOS[:100]
    + b"\r\nGRUB loading...\r\n"
    + KERNEL
    + b"Welcome to Debian!\r\n\r\nDebian GNU/Linux 12 vm ttyS0\r\n\r\nvm login: "
)


@pytest.mark.parametrize(
    ("text", "cause", "evidence"),
    [
        (SEABIOS, BootNoBootLoader, "Boot failed: not a bootable disk / No bootable device."),
        (OVMF_SHELL, BootNoBootLoader, "failed to load Boot0001"),
        (OVMF_NOTHING, BootNoBootLoader, "No bootable option or device was found."),
        (GRUB_RESCUE, BootNoBootLoader, "error: no such device: 11111111-2222-3333-4444-555555555555."),
        (GRUB_NO_KERNEL, BootNoBootLoader, "error: file `/boot/vmlinuz-6.1.0' not found."),
        (GRUB_SHELL, BootNoBootLoader, "Minimal BASH-like line editing is supported"),
        (b"grub> ", BootNoBootLoader, "grub>"),
        (PANIC, BootKernelPanic, "Kernel panic - not syncing: Attempted to kill init!"),
        (PANIC_VFS, BootNoRoot, 'VFS: Cannot open root device "UUID=1111"'),
        (INITRAMFS, BootNoRoot, "ALERT! UUID=9999-1 does not exist. Dropping to a shell!"),
        (INITRAMFS, BootNoRoot, "Gave up waiting for root file system device."),
        (b"(initramfs) ", BootNoRoot, "(initramfs)"),
        (DRACUT, BootNoRoot, "Warning: Could not boot."),
        (DRACUT_SHELL, BootNoRoot, "Dependency failed for /sysroot."),
        (b"dracut:/# ", BootNoRoot, "dracut:/#"),
        (MKINITCPIO, BootNoRoot, "ERROR: device 'UUID=9' not found."),
        (EMERGENCY, BootEmergencyMode, "Timed out waiting for device dev-disk-by\\x2duuid-abc."),
        (EMERGENCY, BootEmergencyMode, "Dependency failed for local-fs.target - Local File Systems."),
        (EMERGENCY_NARROW, BootEmergencyMode, "s.target - Local File Systems."),
        (EMERGENCY_QUIET, BootEmergencyMode, "You are in emergency mode."),
        (LOCKED, BootEmergencyMode, "the root account is locked"),
        (PASSWORD, BootEmergencyMode, "Give root password for maintenance"),
    ],
)
def test_a_tell_tale_gives_its_cause_and_the_line_that_proves_it(
    text: bytes, cause: type[VerificationError], evidence: str
) -> None:
    reading = read(text)
    assert reading.cause is cause
    assert evidence in reading.evidence
    assert reading.error is not None and evidence in reading.error.message


def test_a_boot_that_gets_to_its_login_prompt_has_no_cause() -> None:
    reading = read(LOGIN)
    assert (reading.stage, reading.cause, reading.last_line) == (Stage.MULTI_USER, None, "vm login:")


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        (b"", Stage.NOTHING),
        (SEABIOS[:60] + b"\n", Stage.FIRMWARE),
        (b"GRUB loading...\n", Stage.LOADER),
        (KERNEL, Stage.KERNEL),
        (KERNEL + b"Welcome to Fedora Linux 40 dracut-060 (Initramfs)!\n", Stage.KERNEL),
        (KERNEL + b"\x1b[0mWelcome to \x1b[1mAlmaLinux 9\x1b[0m!\n", Stage.SYSTEM),
        (KERNEL + b"[  OK  ] Reached target \x1b[0;1;39mMulti-User System\x1b[0m.\n", Stage.MULTI_USER),
    ],
)
def test_the_stage_is_the_furthest_that_was_shown(text: bytes, stage: Stage) -> None:
    assert read(text).stage is stage


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        (b"No bootable device.\n", Stage.NOTHING),
        (b"Loading Linux 6.1.0-18-amd64 ...\nKernel panic - not syncing: x\n", Stage.KERNEL),
        (b"(initramfs) ", Stage.KERNEL),
        (b"You are in emergency mode.\n", Stage.SYSTEM),
    ],
)
def test_a_quiet_console_implies_the_stages_before_a_cause(text: bytes, stage: Stage) -> None:
    assert read(text).stage is stage
    assert read(b"Loading Linux 6.1.0-18-amd64 ...\n").stage is Stage.LOADER  # GRUB says it, not the kernel


@pytest.mark.parametrize(
    "text",
    [
        b"Gave up waiting for suspend/resume device\n",
        b"error: no such device: 1234.\n",  # GRUB may go on with another
        b"Boot failed: not a bootable disk\n",  # SeaBIOS tries the next
        b"[DEPEND] Dependency failed for Some Optional Mount.\n",
        b"[DEPEND] Dependency failed for local-fs-pre.target - Preparation for Local File Systems.\n",
        b"[  2.0] Kernel panic - not sync",  # the line has no end yet: its cause is still to come
    ],
)
def test_a_line_that_stops_nothing_is_no_cause(text: bytes) -> None:
    assert read(text).cause is None


@given(st.sampled_from([SEABIOS, OVMF_SHELL, GRUB_RESCUE, PANIC_VFS, INITRAMFS, EMERGENCY, LOGIN]), st.data())
def test_the_reading_does_not_depend_on_how_the_text_arrives(text: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    reading = Reading()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        reading = read(text[start:end], reading)
    whole = read(text)
    assert (reading.stage, reading.cause) == (whole.stage, whole.cause)
    assert whole.evidence.startswith(reading.evidence) or reading.evidence.startswith(whole.evidence)


@given(st.binary(max_size=3000))
def test_nothing_that_a_guest_prints_breaks_the_reader_or_gets_through_to_a_terminal(text: bytes) -> None:
    reading = read(text + b"Kernel panic - not syncing: " + text)
    for shown in (reading.evidence, reading.last_line, cleaned(text)):
        assert all(c == "\t" or c.isprintable() for c in shown)


def test_a_line_without_end_is_kept_within_bounds() -> None:
    reading = Reading()
    for _ in range(100):
        reading = read(b"x" * 10_000, reading)
    assert len(reading.partial) <= 4096
    assert len(read(b"\n", reading).last_line) <= 300

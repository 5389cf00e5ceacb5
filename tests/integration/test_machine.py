"""Guests in a real QEMU: small programs of a few bytes in place of an operating system."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from demo.server import server_tree
from rehost.errors import ProgramFailed
from rehost.run import find
from rehost.source.inventory import Inventory
from rehost.verification.accelerator import accelerator, remember, starts
from rehost.verification.boot import verify_disk
from rehost.verification.qemu import PROGRAM, Machine, MachineSpec, Recording

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(find(PROGRAM) is None, reason=f"{PROGRAM} is not installed"),
]
needs_ovmf = pytest.mark.skipif(
    not any(Path(p).exists() for p in ("/usr/share/OVMF", "/usr/share/edk2")), reason="OVMF is not installed"
)

INVENTORY = Inventory(hostname="empty", os_id="none", architecture="x86_64")
PNG = b"\x89PNG\r\n\x1a\n"
LIMIT = 60.0  # seconds; what is waited for comes in one or two

# lodsb; test al,al; jz +6; mov dx,0x3f8; out dx,al; jmp back: the string at DS:SI goes to the first serial port.
_PRINT = bytes.fromhex("ac 84c0 7406 baf803 ee ebf5")
_HALT = bytes.fromhex("f4 ebfd")  # hlt; jmp back
_RESET = bytes.fromhex("b0fe e664")  # through the keyboard controller
# The same on the BIOS's screen, function 0eh of interrupt 10h.
_SHOW = bytes.fromhex("ac 84c0 7409 b40e bb0700 cd10 ebf2")
# xor ax,ax; mov ds,ax; mov es,ax; then BIOS 13h function 3: write this sector to the second one of the same disk.
_WRITE = bytes.fromhex("31c0 8ed8 8ec0 b80103 bb007c b90200 b600 cd13")


def boot_sector(message: bytes) -> bytes:
    """A disk of 1 MiB that overwrites its second sector, shows `message` and halts."""
    code = _WRITE + b"\xbe\x00\x7d" + _SHOW + _HALT  # mov si,0x7d00
    return (code.ljust(256, b"\0") + message.ljust(254, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0")


def fake_kernel(ending: bytes) -> bytes:
    """What the boot protocol of x86 takes for a kernel: it prints what a kernel without a root prints."""
    message = b"[0.0] Linux version 0.0\r\n[0.1] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n\0"
    image = bytearray(1024 + 512)
    image[0x1F1] = 1  # sectors of set-up code
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x200:0x202] = b"\xeb\x7e"  # jmp 0x280
    image[0x202:0x206] = b"HdrS"
    image[0x206:0x208] = struct.pack("<H", 0x0202)  # version of the protocol
    image[0x211] = 1  # the rest is loaded high
    code = b"\xbe\x00\x03" + (_PRINT + _RESET if ending == b"reset" else b"") + _HALT  # mov si,0x300
    image[0x280 : 0x280 + len(code)] = code
    image[0x300 : 0x300 + len(message)] = message
    return bytes(image)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    directory = tmp_path / "scratch"
    directory.mkdir()
    return directory


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "a disk, with a comma.raw"
    path.write_bytes(boot_sector(b"the guest speaks\r\n"))
    return path


def gone(process_id: int) -> bool:
    """No process of that number, or one that only waits to be collected."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize("writable", [False, True])
def test_what_a_guest_writes_is_kept_only_where_it_was_asked_for(disk: Path, scratch: Path, writable: bool) -> None:
    before = disk.read_bytes()
    log = scratch.parent / "console.log"
    with Machine(MachineSpec(disk=disk, writable=writable), scratch=scratch, console_log=log) as machine:
        assert machine.wait_for_console(rb"the guest speaks\r\n", LIMIT)
        assert machine.running and machine.status() == "running"
        machine.quit()
        assert not machine.running
    after = disk.read_bytes()
    assert after[512:1024] == (before[:512] if writable else before[512:1024])
    assert after[:512] + after[1024:] == before[:512] + before[1024:]
    assert "\nthe guest speaks\n" in log.read_text()


def test_a_machine_leaves_no_process_and_no_scratch_even_when_its_block_fails(disk: Path, scratch: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with Machine(MachineSpec(disk=disk), scratch=scratch, console_log=scratch.parent / "log") as machine:
            process_id = machine.process_id
            assert not gone(process_id) and list(scratch.iterdir())
            raise ZeroDivisionError
    assert gone(process_id)
    assert list(scratch.iterdir()) == []


def test_a_machine_dies_with_us_even_when_we_are_killed(disk: Path, scratch: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from rehost.verification.qemu import *\n"
        "disk, scratch, log = map(Path, sys.argv[1:])\n"
        "with Machine(MachineSpec(disk=disk), scratch=scratch, console_log=log) as m:\n"
        "    print(m.process_id, flush=True); sys.stdin.read()\n"
    )
    argv = [sys.executable, "-c", program, str(disk), str(scratch), str(scratch.parent / "log")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        process_id = int(holder.stdout.readline())
        watched = os.pidfd_open(process_id)
        assert not gone(process_id)
        holder.send_signal(signal.SIGKILL)
    with open(watched, "rb") as handle:
        assert select.select([handle], [], [], LIMIT)[0], "QEMU still runs"


def test_a_disk_that_is_not_of_its_format_is_refused_with_qemus_words(disk: Path, scratch: Path) -> None:
    with pytest.raises(ProgramFailed, match="not in qcow2 format"):
        with Machine(MachineSpec(disk=disk, disk_format="qcow2"), scratch=scratch, console_log=scratch.parent / "log"):
            pass
    assert list(scratch.iterdir()) == []


def test_forwards_get_free_ports_on_loopback_and_a_silent_guest_gives_no_banner(disk: Path, scratch: Path) -> None:
    spec = MachineSpec(disk=disk, forwards=(22, 80))
    with Machine(spec, scratch=scratch, console_log=scratch.parent / "log") as machine:
        assert set(machine.ports) == {22, 80} and len(set(machine.ports.values())) == 2
        # The port takes connections although nothing listens in the guest.
        with socket.create_connection(("127.0.0.1", machine.ports[22]), timeout=LIMIT):
            pass
        assert machine.wait_for_banner(22, b"SSH-", 1.0) is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", machine.ports[22]), timeout=LIMIT)


def test_a_guest_that_prints_for_ever_is_recorded_up_to_the_limit_and_read_on(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    recording = Recording(ours, threading.Condition(), 1000, tmp_path / "log")
    theirs.settimeout(LIMIT)
    theirs.sendall(b"\x1b[31mred\x1b[0m\a line\r\n")
    for _ in range(200):
        theirs.sendall(b"noise without end " * 1000)  # would stand still if nobody read it
    theirs.close()
    recording.join()
    ours.close()
    assert recording.ended and recording.capped and len(recording) == 1000
    assert (tmp_path / "log").stat().st_size < 2000
    assert (tmp_path / "log").read_text().startswith("red line\n")


@pytest.mark.parametrize(
    ("firmware", "proof"),
    [
        ("bios", "No bootable device."),
        pytest.param("uefi", "EFI Internal Shell", marks=needs_ovmf),
    ],
)
def test_an_empty_disk_has_no_boot_loader_and_the_report_proves_it(
    tmp_path: Path, scratch: Path, firmware: str, proof: str
) -> None:
    image, evidence = tmp_path / "empty.raw", tmp_path / "evidence"
    image.write_bytes(bytes(1 << 20))
    report = verify_disk(
        image,
        "raw",
        firmware,
        INVENTORY,
        evidence=evidence,
        scratch=scratch,
        cache=tmp_path / "cache",
        timeout_seconds=120,
    )
    assert report.status == "failed" and report.error is not None
    assert report.error.code == "Boot.NoBootLoader" and proof in report.error.message
    assert [check.status for check in report.checks] == ["failed"] + ["skipped"] * 7
    assert report.evidence.screenshot is not None and report.evidence.console_log is not None
    assert Path(report.evidence.screenshot).read_bytes().startswith(PNG)
    assert proof in Path(report.evidence.console_log).read_text()
    assert sorted(path.name for path in evidence.iterdir()) == [
        "console.log",
        "report.json",
        "report.md",
        "screenshot.png",
    ]
    assert list(scratch.iterdir()) == []
    assert image.read_bytes() == bytes(1 << 20)


def test_a_guest_that_says_nothing_of_use_is_a_time_out_with_its_last_line(
    disk: Path, tmp_path: Path, scratch: Path
) -> None:
    report = verify_disk(
        disk,
        "raw",
        "bios",
        INVENTORY,
        evidence=tmp_path / "e",
        scratch=scratch,
        cache=tmp_path / "cache",
        timeout_seconds=3,
    )
    assert report.error is not None and report.error.code == "Boot.Timeout" and report.error.retryable
    assert "the guest speaks" in report.error.message


def test_a_guest_that_restarts_has_ended_early(tmp_path: Path, scratch: Path) -> None:
    image = tmp_path / "restarts.raw"
    image.write_bytes((_RESET + _HALT).ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    report = verify_disk(
        image,
        "raw",
        "bios",
        INVENTORY,
        evidence=tmp_path / "e",
        scratch=scratch,
        cache=tmp_path / "cache",
        timeout_seconds=60,
    )
    assert report.error is not None and report.error.code == "Boot.EndedEarly"
    assert report.evidence.screenshot is None


@pytest.mark.parametrize(("ending", "expected"), [(b"reset", True), (b"silent", False)])
def test_an_accelerator_works_where_a_kernel_gets_to_its_end(tmp_path: Path, ending: bytes, expected: bool) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(fake_kernel(ending))
    assert starts(kernel, "tcg", LIMIT if expected else 2.0) is expected


def test_without_a_kernel_nothing_is_accelerated_and_nothing_remembered(tmp_path: Path) -> None:
    assert accelerator(tmp_path / "cache", None) == "tcg"
    assert not (tmp_path / "cache").exists()


def test_the_accelerator_that_was_found_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "folder" / "cache.json"
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr("rehost.verification.accelerator.DEVICE", device)  # this machine may have none
    remember(cache, "kvm")
    assert accelerator(cache, None) == "kvm"
    remember(cache, "tcg")
    assert accelerator(cache, None) == "tcg"
    cache.write_text("not JSON")
    assert accelerator(cache, None) == "tcg"


def test_a_kvm_that_was_remembered_and_does_not_work_is_replaced_by_emulation_and_forgotten(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, cache, device = tmp_path / "empty.raw", tmp_path / "cache", tmp_path / "kvm"
    image.write_bytes(bytes(1 << 20))
    device.touch()
    monkeypatch.setattr("rehost.verification.accelerator.DEVICE", device)
    remember(cache, "kvm")
    report = verify_disk(image, "raw", "bios", INVENTORY, evidence=tmp_path / "e", scratch=scratch, cache=cache)
    assert report.error is not None and report.error.code == "Boot.NoBootLoader"
    assert report.accelerator == accelerator(cache, None)  # where KVM works it stays


@pytest.mark.timeout(2000)  # the tree may have to be made first
def test_a_real_kernel_gives_an_answer_that_holds(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    with tarfile.open(server_tree().tar) as tree:
        name = next(member for member in tree if member.name.startswith("./boot/vmlinuz-"))
        content = tree.extractfile(name)
        assert content is not None
        kernel.write_bytes(content.read())
    found = accelerator(tmp_path / "cache", kernel)
    assert found in ("kvm", "tcg")
    assert accelerator(tmp_path / "cache", None) == found

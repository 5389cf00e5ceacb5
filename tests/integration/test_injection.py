"""The probe is put into a raw image without a mount, and only where it can run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rehost.run import find
from rehost.verification.injection import inject, raw_copy
from rehost.verification.probe import files

pytestmark = pytest.mark.skipif(
    find("debugfs") is None or find("mke2fs") is None or find("sgdisk") is None,
    reason="e2fsprogs or gdisk is not installed",
)

OFFSET = 1 << 20
FILES = files(state_seconds=60, script_seconds=5, expected=(), script="#!/bin/sh\necho 'hello'\n")


def image(tmp_path: Path, tree: Path, partitioned: bool = True) -> Path:
    """A raw disk of 12 MiB with the tree as ext4, in the second of two partitions or without a table."""
    path = tmp_path / "disk?a=b.raw"
    path.write_bytes(bytes(12 << 20))
    options = f"offset={OFFSET + (1 << 20)}" if partitioned else "offset=0"
    if partitioned:
        argv = ["sgdisk", "-a", "2048", "-n", "1:2048:4095", "-n", "2:4096:+9M", str(path)]
        subprocess.run([find("sgdisk") or "", *argv[1:]], check=True, capture_output=True)
    argv = [find("mke2fs") or "", "-q", "-F", "-t", "ext4", "-d", str(tree), "-E", options, str(path), "9M"]
    subprocess.run(argv, check=True, capture_output=True)
    return path


def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "usr/lib/systemd").mkdir(parents=True)
    (root / "usr/lib/systemd/systemd").write_bytes(b"ELF")
    (root / "lib").symlink_to("usr/lib")
    return root


def debugfs(path: Path, offset: int, command: str) -> str:
    argv = [find("debugfs") or "", "-R", command, f"{path}?offset={offset}"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("partitioned", [True, False])
def test_the_probe_is_written_whole_and_the_filesystem_stays_clean(tmp_path: Path, partitioned: bool) -> None:
    path = image(tmp_path, tree(tmp_path), partitioned)
    plain, work = tmp_path / "copy.raw", tmp_path / "work"
    work.mkdir()
    raw_copy(path, "raw", plain)
    assert inject(plain, FILES, work) is None
    offset = OFFSET + (1 << 20) if partitioned else 0
    for name, (content, mode) in FILES.items():
        assert debugfs(plain, offset, f"cat /etc/{name}") == content.decode()
        assert f"Mode:  {mode:04o}" in debugfs(plain, offset, f"stat /etc/{name}")
    wants = debugfs(plain, offset, "stat /etc/systemd/system/sysinit.target.wants/rehost-probe.service")
    assert '"../rehost-probe.service"' in wants
    argv = [find("e2fsck") or "", "-fn", f"{plain}?offset={offset}"]
    assert subprocess.run(argv, capture_output=True).returncode == 0


def test_a_journal_is_played_back_before_the_probe_is_written(tmp_path: Path) -> None:
    """As of a disk that was copied while it ran: what is in the journal alone would undo the probe at the boot."""
    path, work = image(tmp_path, tree(tmp_path)), tmp_path / "work"
    plain = tmp_path / "copy.raw"
    raw_copy(path, "raw", plain)
    offset = OFFSET + (1 << 20)
    block = int(debugfs(plain, offset, "blocks /etc/systemd/system").split()[0])
    (tmp_path / "block").write_bytes(plain.read_bytes()[offset + block * 1024 :][:1024])
    (tmp_path / "commands").write_text(f"journal_open\njournal_write -b {block} block\njournal_close\n")
    argv = [find("debugfs") or "", "-w", "-f", "commands", f"{plain.name}?offset={offset}"]
    subprocess.run(argv, check=True, capture_output=True, cwd=tmp_path)
    assert "needs_recovery" in debugfs(plain, offset, "show_super_stats -h")
    work.mkdir()
    assert inject(plain, FILES, work) is None
    argv = [find("e2fsck") or "", "-fy", f"{plain}?offset={offset}"]
    subprocess.run(argv, capture_output=True, check=False)
    assert "rehost-probe.service" in debugfs(plain, offset, "ls /etc/systemd/system")


def test_what_lies_in_the_probes_place_is_replaced(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "etc/systemd/system/rehost-probe.service").write_text("another")
    (root / "etc/systemd/system/sysinit.target.wants").mkdir()
    (root / "etc/systemd/system/sysinit.target.wants/rehost-probe.service").symlink_to("/dev/null")
    (root / "etc/rehost-probe").mkdir()
    (root / "etc/rehost-probe/probe").write_text("another")
    (tmp_path / "work").mkdir()
    assert inject(image(tmp_path, root), FILES, tmp_path / "work") is None


@pytest.mark.parametrize("why", ["no systemd", "no filesystem", "a file in place of the folder"])
def test_an_image_that_cannot_be_probed_is_told_with_the_reason(tmp_path: Path, why: str) -> None:
    root = tree(tmp_path)
    if why == "no systemd":
        (root / "usr/lib/systemd/systemd").unlink()
    elif why == "a file in place of the folder":
        (root / "etc/rehost-probe").write_text("in the way")
    path = image(tmp_path, root)
    if why == "no filesystem":
        with path.open("r+b") as disk:
            disk.seek(2 << 20)
            disk.write(bytes(1 << 20))
    (tmp_path / "work").mkdir()
    reason = inject(path, FILES, tmp_path / "work")
    assert reason is not None
    assert ("could not be written" in reason) is (why == "a file in place of the folder")


def test_the_probe_is_sound_for_a_plain_shell() -> None:
    program = FILES["rehost-probe/probe"][0]
    assert subprocess.run(["/bin/sh", "-n"], input=program, check=False).returncode == 0

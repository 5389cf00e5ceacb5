"""Puts the probe into a throw-away copy of a disk image, without mounting anything.

The copy is raw and sparse. The root filesystem is found by its partition and its content, and `debugfs` writes the
probe's files into it. Every name in its command file is one of ours; since debugfs says what went wrong on standard
error alone, each file is read back and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rehost.disk_formats import driver_of
from rehost.errors import SourceImageDamaged, SourceUnsupported
from rehost.run import run
from rehost.source.partition_tables import read_table
from rehost.verification.probe import DIRECTORY, UNIT

_SECONDS = 120.0  # for a debugfs call, on a busy machine
_COPY_SECONDS = 3600.0
_REPLAY_SECONDS = 600.0
_INCOMPAT_AT, _INCOMPAT_RECOVER = 1024 + 0x60, 0x4  # of the superblock: the journal was not played back
_EXT_MAGIC_AT, _EXT_MAGIC = 1024 + 56, b"\x53\xef"  # Documentation/filesystems/ext4/super.rst of Linux
_LINK = f"/etc/systemd/system/sysinit.target.wants/{UNIT}"
_LINK_TARGET = f"../{UNIT}"


def raw_copy(image: Path, image_format: str, copy: Path) -> None:
    """Write `image` as a sparse raw file. Raises ProgramFailed where it cannot be read or there is no room."""
    argv = ["qemu-img", "convert", "-q", "-f", driver_of(image_format), "-O", "raw", "--", str(image), str(copy)]
    run(argv, timeout=_COPY_SECONDS)


def inject(copy: Path, files: Mapping[str, tuple[bytes, int]], work: Path) -> str | None:
    """Write the probe's `files` (paths below /etc) into the root filesystem of the raw image `copy`.

    `work` is an empty directory for what debugfs reads. Returns None, or the reason why this image cannot be probed.
    """
    offset = _root_offset(copy, work)
    if offset is None:
        return "no ext2, ext3 or ext4 filesystem with systemd was found in the image"
    if _needs_replay(copy, offset):
        # A filesystem that was copied as it stood: its journal would undo at the boot what is written now.
        _replay(copy, offset, work)
    commands = ["cd /etc", f"mkdir {DIRECTORY}"]
    for number, (path, (content, mode)) in enumerate(files.items()):
        local = work / f"file{number}"
        local.write_bytes(content)
        local.chmod(mode)
        directory, _, name = path.rpartition("/")
        commands += [f"cd /etc/{directory}", f"rm {name}", f"write {local.name} {name}"]
    commands += ["cd /etc/systemd/system", "mkdir sysinit.target.wants", "cd sysinit.target.wants", f"rm {UNIT}"]
    commands += [f"symlink {UNIT} {_LINK_TARGET}"]
    _debugfs(copy, offset, work, commands, write=True)

    backs = [f"dump /etc/{path} back{number}" for number, path in enumerate(files)]
    stat = _debugfs(copy, offset, work, [*backs, f"stat {_LINK}"], write=False)
    for number, (path, (content, _)) in enumerate(files.items()):
        back = work / f"back{number}"
        if not back.is_file() or back.read_bytes() != content:
            return f"the probe could not be written to /etc/{path} of the image"
    if f'Fast link dest: "{_LINK_TARGET}"' not in stat:
        return f"the probe could not be written to {_LINK} of the image"
    return None


def _needs_replay(copy: Path, offset: int) -> bool:
    with copy.open("rb") as disk:
        disk.seek(offset + _INCOMPAT_AT)
        return bool(int.from_bytes(disk.read(4), "little") & _INCOMPAT_RECOVER)


def _replay(copy: Path, offset: int, work: Path) -> None:
    """Play the journal back, as the kernel would at the mount, and change nothing else: what is broken stays so."""
    link = _link(copy, work)
    argv = ["e2fsck", "-y", "-E", "journal_only", f"{link.name}?offset={offset}"]
    run(argv, timeout=_REPLAY_SECONDS, cwd=work, check=False)


def _link(copy: Path, work: Path) -> Path:
    link = work / "image"  # debugfs and e2fsck would cut a path at a question mark
    if not link.is_symlink():
        link.symlink_to(copy.absolute())
    return link


def _debugfs(copy: Path, offset: int, work: Path, commands: list[str], *, write: bool) -> str:
    """What debugfs printed. It runs in `work`, so that no path of the worker is in its command file."""
    command_file = work / "commands"
    command_file.write_text("\n".join(commands) + "\n")
    link = _link(copy, work)
    argv = ["debugfs", *(["-w"] if write else []), "-f", command_file.name, f"{link.name}?offset={offset}"]
    completed = run(argv, timeout=_SECONDS, cwd=work, check=False, env={"DEBUGFS_PAGER": "cat"})
    return completed.stdout.decode("utf-8", "replace")


def _root_offset(copy: Path, work: Path) -> int | None:
    """Where the first ext filesystem starts that holds systemd and its configuration, in bytes; or None."""
    with copy.open("rb") as disk:

        def read(offset: int, length: int) -> bytes:
            disk.seek(offset)
            return disk.read(length)

        try:
            table = read_table(read, copy.stat().st_size, copy.name)
        except (SourceImageDamaged, SourceUnsupported):
            return None
        starts = [partition.start for partition in table.partitions] if table else [0]
        offsets = [start for start in starts if read(start + _EXT_MAGIC_AT, 2) == _EXT_MAGIC]
    for offset in offsets:
        told = _debugfs(copy, offset, work, ["stat /etc/systemd/system", "stat /lib/systemd/systemd"], write=False)
        if "Type: directory" in told and "Type: regular" in told:
            return offset
    return None

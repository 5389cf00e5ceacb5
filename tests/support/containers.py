"""For tests of containers: a small server made of this machine's programs, its files table, and a real registry."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from image_builders.container.request import ContainerRequest
from rehost.replication.manifest import CHUNK_BYTES, Chunk, Entry, table_of
from rehost.source.inventory import Inventory, Listener

NAMESPACE = "rehost-tests"
SNAPSHOT_AT = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)

# Answers each connection with its first argument's port number; perl-base has all that it needs.
PERL_SERVER = """#!/usr/bin/perl
use IO::Socket::INET;
$| = 1;
my $server = IO::Socket::INET->new(LocalPort => $ARGV[0], LocalAddr => $ARGV[1] || "0.0.0.0", Listen => 5,
    ReuseAddr => 1) or die "cannot listen: $!";
print "listening on $ARGV[0]\\n";
while (my $client = $server->accept()) { print $client "port $ARGV[0]\\n"; close $client; }
"""


class Chunks(dict[bytes, bytes]):
    """Content by name, in memory."""

    def add(self, content: bytes) -> bytes:
        name = hashlib.sha256(content).digest()
        self[name] = content
        return name

    def read_chunk(self, sha256: bytes) -> bytes:
        return self[sha256]


def make_server(directory: Path, port: int = 8080) -> None:
    """A server without systemd: dash, a few tools, perl, and a program `answerer` that listens."""
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "var/run", "tmp", "dev", "proc", "sys", "boot", "root"):
        (directory / folder).mkdir(parents=True)
    for program in ("dash", "cat", "sleep", "find", "perl", "id"):
        _copy_program(directory, program)
    (directory / "bin/sh").symlink_to("/usr/bin/dash")
    perl = subprocess.run(
        ["perl", "-e", 'print join "\\n", grep m{^/} && m{perl-base}, @INC'], capture_output=True, text=True
    )
    for modules in perl.stdout.split():
        shutil.copytree(modules, directory / modules.lstrip("/"), symlinks=True)
    server = directory / "usr/sbin/answerer"
    server.write_text(PERL_SERVER.replace("use IO", f"$ARGV[0] ||= {port};\nuse IO", 1))
    server.chmod(0o755)
    (directory / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (directory / "etc/group").write_text("root:x:0:\n")
    (directory / "boot/vmlinuz").write_bytes(b"a kernel")


def _copy_program(directory: Path, program: str) -> None:
    found = shutil.which(program)
    assert found, program
    target = directory / "usr/bin" / program
    shutil.copy(found, target)
    listed = subprocess.run(["ldd", found], capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", listed):
        place = directory / library.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copy(library, place)


def table_from(directory: Path, chunks: Chunks) -> pa.Table:
    """The files table of a folder; blocks of zeros become holes."""
    entries: list[Entry] = []
    names: dict[tuple[int, int], int] = {}
    top = os.fsencode(directory)
    paths = [top]
    while paths:
        path = paths.pop()
        entry = _entry(path, path[len(top) + 1 :], chunks, names)
        entries.append(entry)
        if entry.is_directory:
            paths += [item.path for item in os.scandir(path)]
    return table_of(entries)


def _entry(path: bytes, name: bytes, chunks: Chunks, groups: dict[tuple[int, int], int]) -> Entry:
    status = os.lstat(path)
    pieces: list[Chunk] = []
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            for offset in range(0, status.st_size, CHUNK_BYTES):
                content = file.read(CHUNK_BYTES)
                if content.strip(b"\0"):
                    pieces.append(Chunk(offset, len(content), chunks.add(content)))
    group = None
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        group = groups.setdefault((status.st_dev, status.st_ino), len(groups) + 1)
    return Entry(
        path=name,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
        mtime_ns=status.st_mtime_ns,
        rdev_major=os.major(status.st_rdev),
        rdev_minor=os.minor(status.st_rdev),
        target=os.readlink(path) if stat.S_ISLNK(status.st_mode) else None,
        xattrs=tuple(
            (key.encode(), os.getxattr(path, key, follow_symlinks=False))
            for key in sorted(os.listxattr(path, follow_symlinks=False))
        ),
        chunks=tuple(pieces),
        link_group=group,
    )


def inventory(*listeners: Listener, **facts: Any) -> Inventory:
    """A server on this machine's architecture that listened there."""
    known: dict[str, Any] = {"hostname": "tiny", "os_id": "debian", "architecture": os.uname().machine}
    return Inventory(**{**known, **facts, "listeners": listeners})


def listener(
    port: int, address: str = "0.0.0.0", process: str | None = "answerer", unit: str | None = None
) -> Listener:
    return Listener(protocol="tcp", address=address, port=port, process=process, unit=unit)


def request(repository: str, *, registry: str | None = None, command: Sequence[str] = ()) -> ContainerRequest:
    return ContainerRequest(
        image_id="m-00000000000000000001",
        namespace=NAMESPACE,
        repository=repository,
        tag="latest",
        registry=registry,
        registry_insecure=False,
        title="Tiny",
        source_id="s-00000000000000000001",
        snapshot_id="n-00000000000000000001",
        snapshot_at=SNAPSHOT_AT,
        command=tuple(command),
    )

"""A files table made by hand with everything in it that an ext4 filesystem can hold."""

from __future__ import annotations

import os
import struct

import pyarrow as pa

from rehost.replication.manifest import Chunk, Entry, table_of
from tests.support.ext4_images import BLOCK, Chunks

NO_ID = 0xFFFFFFFF
MAIN_ACL = ((0x01, 7, NO_ID), (0x02, 5, 1234), (0x04, 5, NO_ID), (0x08, 4, 99_999), (0x10, 7, NO_ID), (0x20, 0, NO_ID))
CAPABILITY = struct.pack("<IIIII", 0x02000001, 0x400, 0, 0, 0)  # cap_net_bind_service=ep
NS = 10**9


def acl(*parts: tuple[int, int, int]) -> bytes:
    """The xattr form of a POSIX ACL."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *part) for part in parts)


def nasty_table(*, flags: bool = True) -> tuple[pa.Table, Chunks]:
    """The table and its content. `flags`: with immutable and append-only ones."""
    chunks = Chunks()
    noise = bytes(range(256)) * 8192
    made: list[Entry] = [
        Entry(
            b"",
            0o40755,
            atime_ns=1_600_000_000 * NS + 1,
            mtime_ns=1_600_000_001 * NS + 2,
            ctime_ns=1_600_000_002 * NS + 3,
        ),
        Entry(b"a", 0o40755),
        Entry(b"a-b", 0o100644),  # sorts between a and a/b
        Entry(b"a/b", 0o40755),
        Entry(b"a/b/c", 0o40755),
        chunks.file(b"a/b/c/file", (0, b"deep")),
        Entry(b"modes", 0o41777, uid=4_000_000_000, gid=4_000_000_001),
        *(Entry(b"modes/%04o" % mode, 0o100000 | mode, uid=65_536, gid=65_535) for mode in (0, 0o4755, 0o2755, 0o1644)),
        Entry(b"modes/dir", 0o42775),
        Entry(b"nodes", 0o40755),
        Entry(b"nodes/null", 0o20666, rdev_major=1, rdev_minor=3),
        Entry(b"nodes/new", 0o20600, rdev_major=4095, rdev_minor=1_048_575),
        Entry(b"nodes/block", 0o60660, rdev_major=259, rdev_minor=300),
        Entry(b"nodes/fifo", 0o10640),
        Entry(b"nodes/socket", 0o140755),
        Entry(b"links", 0o40755),
        *(Entry(b"links/%d" % size, 0o120777, target=b"t" * size) for size in (1, 59, 60, 61, 4094, 4095)),
        Entry(b"links/odd", 0o120777, target=b"/\xff\n\x01//..", xattrs=((b"trusted.on", b"link"),)),
        Entry(b"links/labelled", 0o120777, target=b"x" * 59, xattrs=((b"security.selinux", b"l" * 200),)),
        Entry(b"names", 0o40755),
        Entry(b"names/" + b"n" * 255, 0o100600),
        Entry(b"names/" + b"\xff" * 255, 0o40700),
        *(Entry(b"names/" + bytes([byte]), 0o100600) for byte in range(1, 256) if byte not in b"./"),
        Entry(b"names/...", 0o100600),
        Entry(b"names/\xc3\x28 ok\n", 0o100600),
        Entry(b"hard", 0o40755),
        *(chunks_entry for chunks_entry in _hard_links(chunks)),
        Entry(b"attributes", 0o40755, xattrs=((b"system.posix_acl_default", acl(*MAIN_ACL)), (b"user.dir", b"1"))),
        Entry(b"attributes/acl", 0o100674, xattrs=((b"system.posix_acl_access", acl(*MAIN_ACL)),)),
        Entry(b"attributes/cap", 0o100755, xattrs=((b"security.capability", CAPABILITY),)),
        Entry(b"attributes/empty", 0o100644, xattrs=((b"user.e", b""), (b"user.f", b"\0"))),
        Entry(b"attributes/name", 0o100644, xattrs=((b"user." + b"\xe9" * 250, b"v" * 7),)),
        Entry(b"attributes/large", 0o100644, xattrs=((b"user.large", bytes(range(256)) * 15),)),
        Entry(
            b"attributes/many",
            0o100644,
            xattrs=tuple((b"user.%03d" % number, b"%d" % number * 5) for number in range(80)),
        ),
        Entry(
            b"attributes/all",
            0o100674,
            xattrs=(
                (b"security.capability", CAPABILITY),
                (b"security.selinux", b"system_u:object_r:etc_t:s0\0"),
                (b"system.posix_acl_access", acl(*MAIN_ACL)),
                (b"trusted.overlay.opaque", b"y"),
                (b"user.comment", b"c" * 300),
            ),
        ),
        Entry(b"times", 0o40755),
        *(
            Entry(b"times/%d" % number, 0o100644, atime_ns=ns, mtime_ns=ns + 1, ctime_ns=ns + 2)
            for number, ns in enumerate(
                (0, -1, -(2**31) * NS, (2**31 - 1) * NS, 2**31 * NS, 2**32 * NS + 999_999_990, 9_000_000_000 * NS + 5)
            )
        ),
        Entry(b"content", 0o40755),
        chunks.file(b"content/one", (0, b"x")),
        chunks.file(b"content/block", (0, noise[:BLOCK])),
        chunks.file(b"content/more", (0, noise[: BLOCK + 1])),
        chunks.file(b"content/chunks", (0, noise + noise[:70_000])),
        chunks.file(b"content/all hole", size=5_000_000),
        chunks.file(b"content/hole first", (1_000_000, b"data")),
        chunks.file(b"content/hole last", (0, b"data"), size=2**41 + 12_345),
        chunks.file(b"content/far", (3 * 2**41 + 7, b"far away")),
        chunks.file(b"content/largest", (0, b"a"), (2**44 - 2 * BLOCK, b"z" * BLOCK)),
        chunks.file(b"content/one block", (100, b"a" * 50), (200, b"b" * 50), (4000, b"c" * 96), size=9000),
        chunks.file(b"content/neighbours", (0, b"a" * 10), (8190, b"b" * 10), (12_288, b"c"), size=40_000),
        chunks.file(b"content/zeros", (0, bytes(3 * BLOCK))),
        *(
            chunks.file(b"content/holes %d" % count, *((2 * BLOCK * n, b"%d" % n) for n in range(count)))
            for count in (3, 4, 5, 340, 341, 1361)
        ),
        Entry(b"empty", 0o40700),
        Entry(b"lost+found", 0o40700),
        chunks.file(b"lost+found/#1234", (0, b"found once")),
        Entry(b"flags", 0o40755),
        Entry(b"flags/nodump", 0o100644, flags=0x40),
    ]
    if flags:
        made += [
            Entry(b"flags/immutable", 0o100644, flags=0x10),
            Entry(b"flags/append", 0o100644, flags=0x20),
            Entry(b"flags/dir", 0o40755, flags=0x70),
        ]
    return table_of(made), chunks


def _hard_links(chunks: Chunks) -> list[Entry]:
    content: tuple[Chunk, ...] = (chunks.put(0, os.fsencode("shared by three")),)
    common = {"size": content[0].length, "chunks": content, "link_group": 7, "uid": 5, "mtime_ns": 123}
    names = (b"hard/z", b"hard/a", b"a/b/linked")
    return [
        *(Entry(name, 0o100640, **common) for name in names),  # type: ignore[arg-type]
        *(Entry(name, 0o120777, target=b"nowhere", link_group=8) for name in (b"hard/symlink", b"hard/symlink too")),
        Entry(b"hard/alone", 0o10600, link_group=9),
    ]

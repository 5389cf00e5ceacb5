"""Initramfs archives in every form, and archives that mean harm."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from image_builders.disk.initramfs import InitramfsUnreadable, check_drivers, modules_in
from rehost.run import find
from tests.support.small_tree import small_tree

VERSION = "6.1.0-1-amd64"
FOLDER = f"usr/lib/modules/{VERSION}/kernel"


def archive(*names: str, content: bytes = b"abcde") -> bytes:
    """A cpio archive in the form newc."""
    out = bytearray()
    for name in (*names, "TRAILER!!!"):
        data = b"" if name == "TRAILER!!!" else content
        fields = [1, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4)
        out += data
        out += bytes(-len(out) % 4)
    return bytes(out) + bytes(-len(out) % 512)


def lz4_legacy(data: bytes) -> bytes:
    codec = pa.Codec("lz4_raw")
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = codec.compress(data[start : start + (8 << 20)], asbytes=True)
        out += struct.pack("<I", len(block)) + block
    return out


def in_pieces(data: bytes, size: int = 1000) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "none": lambda data: data,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
    "lz4": lz4_legacy,
}


@pytest.mark.parametrize("packer", PACKERS)
def test_modules_are_found_after_microcode_in_every_compression(packer: str) -> None:
    main = archive(f"{FOLDER}/virtio_blk.ko", f"{FOLDER}/virtio-pci.ko.xz", f"{FOLDER}/fs/ext4.ko.zst", "etc/x.koala")
    data = archive("kernel/x86/microcode/AuthenticAMD.bin") + bytes(1024) + PACKERS[packer](main)
    assert modules_in(in_pieces(data)) == {"virtio_blk", "virtio_pci", "ext4"}


def test_several_compressed_parts_in_a_row_are_read() -> None:
    data = zstandard.ZstdCompressor().compress(archive("a/one.ko")) + bytes(8) + gzip.compress(archive("a/two.ko"))
    assert modules_in(in_pieces(data, 7)) == {"one", "two"}


@pytest.mark.skipif(find("cpio") is None, reason="cpio is not installed")
def test_an_archive_of_the_real_cpio_is_read(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/virtio_blk.ko").write_bytes(b"x" * 4097)
    names = b"lib\nlib/virtio_blk.ko\n"
    made = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"], input=names, cwd=tmp_path, capture_output=True, check=True
    )
    assert modules_in([gzip.compress(made.stdout)]) == {"virtio_blk"}


@pytest.mark.parametrize("packer", ["gzip", "zstd", "xz", "bzip2", "lz4"])
def test_a_bomb_is_given_up_before_it_fills_the_memory(packer: str) -> None:
    one = PACKERS[packer](archive("a/one.ko", content=bytes(32 << 20)))
    bomb = one[:4] + one[4:] * 8 if packer == "lz4" else one * 8
    tracemalloc.start()
    try:
        with pytest.raises(InitramfsUnreadable, match="more than any"):
            modules_in(in_pieces(bomb, 1 << 20), unpacked_most=100 << 20)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 100 << 20


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(10_000),
        b"not an archive at all",
        archive("a")[:60],
        archive("a/one.ko").replace(b"00000005", b"FFFFFFFF"),
        archive("a/one.ko").replace(b"00000005", b"zzzzzzzz"),
        b"070701" + b"%08X" % 1 * 11 + b"0FFFFFFF" + b"0" * 8,
        b"\x1f\x8b\x08\x00garbage that is not deflated",
        b"\x28\xb5\x2f\xfd" + b"\xff" * 100,
        b"\x02\x21\x4c\x18" + struct.pack("<I", 50) + b"\xff" * 50,
        gzip.compress(b"070701 but nothing more"),
    ],
)
def test_what_is_no_initramfs_is_told_and_nothing_else_fails(data: bytes) -> None:
    with pytest.raises(InitramfsUnreadable):
        modules_in(in_pieces(data))


def test_drivers_count_in_the_initramfs_or_in_the_kernel() -> None:
    full = archive(f"{FOLDER}/virtio_blk.ko", f"{FOLDER}/virtio_pci.ko", f"{FOLDER}/ext4.ko")
    part = archive(f"{FOLDER}/virtio_blk.ko")
    builtin = b"kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio_pci.ko\n"
    tree = small_tree({"boot/full": full, "boot/part": part, "boot/odd": b"odd", "lib": "usr/lib", "usr/x": b""})
    assert check_drivers(tree, VERSION, b"boot/full").missing == ()
    assert check_drivers(tree, VERSION, b"boot/part").missing == ("virtio_pci", "ext4")
    unknown = check_drivers(tree, VERSION, b"boot/odd")
    assert unknown.missing == () and unknown.unknown
    listed = f"usr/lib/modules/{VERSION}/modules.builtin"
    tree = small_tree({"boot/part": part, "lib": "usr/lib", listed: builtin})
    assert check_drivers(tree, VERSION, b"boot/part").missing == ()
    assert check_drivers(tree, VERSION, None).missing == ("virtio_blk",)
    assert check_drivers(tree, "5.10", None).unknown

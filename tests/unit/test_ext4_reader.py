"""The reader of ext4 images over filesystems that mke2fs made, sound and damaged."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from rehost.errors import SourceImageDamaged, SourceUnsupported
from rehost.source import ext4_reader
from rehost.source.ext4_reader import Ext4Image
from tests.support.ext4_judge import Judged, read_filesystem, read_mounted

pytestmark = pytest.mark.skipif(shutil.which("mke2fs") is None, reason="mke2fs is not installed")

FEATURES = {
    "ext4": ["-t", "ext4", "-b", "4096"],
    "ext4, 1 KiB blocks": ["-t", "ext4", "-b", "1024"],
    "ext4 without extents": ["-t", "ext4", "-O", "^extent,^64bit"],
    "ext4 without 64bit": ["-t", "ext4", "-O", "^64bit"],
    "ext4 with inline data": ["-t", "ext4", "-O", "inline_data", "-I", "256"],
    "ext4 without checksums": ["-t", "ext4", "-O", "^metadata_csum"],
    "ext4 with meta_bg": ["-t", "ext4", "-b", "1024", "-g", "1024", "-O", "meta_bg,^resize_inode,^flex_bg"],
    "ext4 with a value in an inode": ["-t", "ext4", "-O", "ea_inode"],
    "ext4 without filetype": ["-t", "ext4", "-O", "^filetype"],
    "ext4 with 128-byte inodes": ["-t", "ext4", "-I", "128"],
    "ext4 with sparse_super2": ["-t", "ext4", "-O", "sparse_super2,^resize_inode"],
    "ext4 with clusters": ["-t", "ext4", "-O", "bigalloc"],
    "ext3": ["-t", "ext3"],
    "ext2, 1 KiB blocks": ["-t", "ext2", "-b", "1024"],
}


def make_tree(root: Path) -> None:
    """A tree in which every way of storing content occurs that mke2fs -d keeps."""
    chance = random.Random(1)
    (root / "etc").mkdir(parents=True)
    (root / "etc/fstab").write_text("UUID=0 / ext4 defaults 0 1\n")
    (root / "empty").touch()
    (root / "tiny").write_bytes(b"tiny")
    (root / "inline").write_bytes(chance.randbytes(120))
    (root / "large").write_bytes(chance.randbytes(3_300_001))
    (root / "short link").symlink_to("tiny")
    (root / "long link").symlink_to("x" * 200 + "/tiny")
    (root / "exact link").symlink_to("y" * 60)
    os.link(root / "tiny", root / "etc/linked")
    os.mkfifo(root / "pipe", 0o600)
    (root / os.fsdecode(b"odd \xff\n\\name")).write_bytes(b"odd")
    with (root / "sparse").open("wb") as file:
        for offset in (0, 70_000, 5_000_000, 300_000_000):
            file.seek(offset)
            file.write(chance.randbytes(5000))
        file.truncate(400_000_000)
    os.setxattr(root / "tiny", "user.note", b"value")
    os.setxattr(root / "large", "user.long", bytes(range(256)) * 3)
    (root / "many").mkdir()
    for number in range(1500):
        (root / f"many/a name of some length {number:05}").touch()
    deep = root
    for _ in range(40):
        deep = deep / "deep"
        deep.mkdir()
    for path in root.rglob("*"):
        if not path.is_symlink():
            os.utime(path, ns=(1_500_000_000_000_000_000, 1_600_000_000_000_000_000))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    make_tree(root)
    return root


def make_image(path: Path, tree: Path, options: list[str], size: str = "48M") -> None:
    subprocess.run(["mke2fs", "-q", "-F", *options, "-d", str(tree), str(path), size], check=True, capture_output=True)


def comparable(found: dict[bytes, Judged]) -> dict[bytes, tuple[object, ...]]:
    """What mke2fs -d keeps: all but the access time, sub-second times, and what the root itself has."""
    kept: dict[bytes, tuple[object, ...]] = {}
    for path, judged in found.items():
        entry = judged.entry
        kept[path] = (
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.target,
            entry.xattrs,
            judged.digest,
            judged.linked_to,
            entry.mtime_ns if entry.is_file else 0,
        )
    kept.pop(b"lost+found", None)
    kept.pop(b"", None)
    return kept


@pytest.mark.parametrize("features", FEATURES)
def test_what_mke2fs_wrote_is_read_back(tree: Path, tmp_path: Path, features: str) -> None:
    image = tmp_path / "image"
    make_image(image, tree, FEATURES[features])
    found = comparable(read_filesystem(image))
    expected = comparable(read_mounted(tree))
    if features == "ext4 with inline data":  # mke2fs 1.47.0 then loses the hole at the end of a file
        del found[b"sparse"], expected[b"sparse"]
    assert found.keys() == expected.keys()
    assert [path for path in expected if found[path] != expected[path]] == []


def test_holes_stay_holes(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_image(image, tree, FEATURES["ext4"])
    data = read_filesystem(image)[b"sparse"].data
    assert sum(length for _, length in data) <= 8 * 4096
    assert data[-1][0] + data[-1][1] <= 300_000_000 + 3 * 4096


def test_a_filesystem_inside_a_disk_is_read_at_its_offset(tree: Path, tmp_path: Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    make_image(image, tree, FEATURES["ext4"])
    with disk.open("wb") as file:
        file.seek(1 << 20)
        file.write(image.read_bytes())
    assert read_filesystem(disk, 1 << 20, image.stat().st_size) == read_filesystem(image)


def test_a_partition_shorter_than_its_filesystem_is_refused(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_image(image, tree, FEATURES["ext4"])
    with pytest.raises(SourceImageDamaged, match="partition"):
        Ext4Image(image, 0, image.stat().st_size - 4096)


def test_an_encrypted_directory_is_refused_by_name(tmp_path: Path) -> None:
    root, image = tmp_path / "root", tmp_path / "image"
    (root / "secret").mkdir(parents=True)
    (root / "secret/hidden").touch()
    make_image(image, root, ["-t", "ext4", "-O", "encrypt"], "8M")
    request = "set_inode_field secret flags 0x80800"
    subprocess.run(["debugfs", "-w", "-R", request, str(image)], check=True, capture_output=True)
    with Ext4Image(image) as reader, pytest.raises(SourceUnsupported, match="/secret is encrypted"):
        list(reader.entries())
    refused: list[bytes] = []
    with Ext4Image(image) as reader:
        found = [entry.path for entry in reader.entries(refused=lambda path, reason: refused.append(path))]
    assert refused == [b"secret"]
    assert b"secret" in found
    assert b"secret/hidden" not in found


def test_an_unknown_feature_is_refused(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_image(image, tree, FEATURES["ext4 without checksums"])
    with image.open("r+b") as file:
        file.seek(1024 + 0x60)
        features = int.from_bytes(file.read(4), "little") | 0x40000000
        file.seek(1024 + 0x60)
        file.write(features.to_bytes(4, "little"))
    with pytest.raises(SourceUnsupported, match="0x40000000"):
        Ext4Image(image)


def debugfs(image: Path, *requests: str) -> None:
    script = "\n".join(requests) + "\n"
    subprocess.run(["debugfs", "-w", "-f", "/dev/stdin", str(image)], input=script.encode(), check=True)


def test_directories_in_a_circle_are_refused(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_image(image, tree, FEATURES["ext4 without checksums"])
    debugfs(image, "link /deep /deep/deep/deep/back")
    with Ext4Image(image) as reader, pytest.raises(SourceImageDamaged, match="two places"):
        list(reader.entries())


def test_a_circle_in_a_block_map_is_refused(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_image(image, tree, FEATURES["ext2, 1 KiB blocks"])
    with Ext4Image(image) as reader:
        inode = reader.child(reader.inode(2), b"large")
    assert inode is not None
    double = int.from_bytes(inode.map[52:56], "little")
    with image.open("r+b") as file:
        file.seek(double * 1024)
        file.write(double.to_bytes(4, "little") * 256)
    with pytest.raises(SourceImageDamaged, match=r"circle|order"):
        read_filesystem(image)


def test_a_path_nested_beyond_all_bounds_is_refused(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ext4_reader, "_PATH_BYTES", 150)
    image = tmp_path / "image"
    make_image(image, tree, FEATURES["ext4"])
    with Ext4Image(image) as reader, pytest.raises(SourceUnsupported, match="nested too deep"):
        list(reader.entries())


@pytest.fixture(scope="module", params=["ext4", "ext4 with inline data", "ext2, 1 KiB blocks"])
def small_image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("small")
    root = directory / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/file").write_bytes(bytes(range(256)) * 200)
    (root / "a/b/link").symlink_to("z" * 100)
    (root / "a/b/inline").write_bytes(b"inline" * 20)
    os.setxattr(root / "a/file", "user.name", b"value" * 50)
    for number in range(60):
        (root / f"a/b/{number:040}").touch()
    image = directory / "image"
    make_image(image, root, [*FEATURES[request.param], "-N", "128"], "2M")
    return image.read_bytes()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_gives_our_errors_alone(small_image: bytes, tmp_path: Path, data: st.DataObject) -> None:
    used = [at for at in range(0, len(small_image), 64) if any(small_image[at : at + 64])]
    content = bytearray(small_image)
    for _ in range(data.draw(st.integers(1, 12))):
        at = data.draw(st.sampled_from(used)) + data.draw(st.integers(0, 63))
        content[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    image = tmp_path / "damaged"
    image.write_bytes(content)
    began = time.monotonic()
    with contextlib.suppress(SourceImageDamaged, SourceUnsupported):
        read_holding_little(image)
    if time.monotonic() - began > 60:
        pytest.fail("a damaged image of 2 MiB kept the reader busy for a minute")


def read_holding_little(image: Path) -> None:
    """Read all there is; a file that claims terabytes as holes must not make us hold or hash them."""
    with Ext4Image(image) as reader:
        for path, inode in reader.walk():
            entry = reader.entry(path, inode)
            if stat.S_ISREG(entry.mode):
                taken = sum(len(piece) for _, piece in reader.pieces(inode))
                assert taken <= len(image.read_bytes())

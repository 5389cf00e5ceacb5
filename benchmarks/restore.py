"""From what is stored to a disk: Rehost's builder beside `restic restore` and `mke2fs -d` on the same tree.

Rehost's side ends with a bootable raw disk: partition table, filesystem, GRUB for both firmwares, its SHA-256. The
peer's side ends with the filesystem alone, so it is given the lighter work. Both repositories are on the same disk and
were just written, and both sides end with their file on that disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.measure import Row, compare
from image_builders.disk.build import build_disk
from image_builders.disk.request import DiskRequest
from rehost.replication.store import Store
from rehost.replication.tar_import import import_tar
from rehost.replication.tree import Tree
from rehost.run import run
from rehost.source.inventory import Inventory, Volume

BAR = 0.6
_UUID = "2b1d8a52-6a2f-4a57-a0a5-7c1d1e3f0a11"
_DISK_BYTES = 4 << 30  # at least; larger trees get twice their size
_HOUR = 3600.0


def store_to_disk(tar: Path, scratch: Path) -> Row:
    """Compare on the tree of that tar; `scratch` is an empty folder. Root is needed, for restic's restore."""
    tree_folder, repository, restored = scratch / "tree", scratch / "restic", scratch / "restored"
    tree_folder.mkdir()
    unpack = ["tar", "-C", str(tree_folder), "--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf", str(tar)]
    run(unpack, timeout=_HOUR)
    # restic asks for a password; there is nothing to keep secret.
    environment = {"RESTIC_PASSWORD": "benchmark", "RESTIC_CACHE_DIR": str(scratch / "restic-cache")}
    restic = ["restic", "--quiet", "--repo", str(repository)]
    run([*restic, "init"], timeout=60, env=environment)
    run([*restic, "backup", "."], timeout=_HOUR, env=environment, cwd=tree_folder)
    shutil.rmtree(tree_folder)

    with Store.open(scratch / "store") as store:
        with tar.open("rb") as stream:
            files = import_tar(stream, store)
        content = int(files["size"].to_numpy().sum())
        size = max(_DISK_BYTES, -(-2 * content // (1 << 30)) << 30)
        root = Volume(mount_point="/", filesystem="ext4", uuid=_UUID, size_bytes=size, used_bytes=content)
        inventory = Inventory(hostname="benchmark", os_id="debian", architecture="x86_64", volumes=(root,))
        request = DiskRequest(image_id="m-benchmark", name="benchmark", formats=("raw",), size_bytes=size)

        peer_image = scratch / "peer.raw"

        def clean() -> None:
            shutil.rmtree(scratch / "image", ignore_errors=True)
            shutil.rmtree(restored, ignore_errors=True)
            peer_image.unlink(missing_ok=True)

        def by_rehost() -> None:
            build_disk(Tree(files, store), inventory, request, scratch / "image")

        def by_peer() -> None:
            run([*restic, "restore", "latest", "--target", str(restored)], timeout=_HOUR, env=environment)
            mke2fs = ["mke2fs", "-q", "-F", "-t", "ext4", "-U", _UUID, "-d", str(restored), str(peer_image)]
            run([*mke2fs, f"{size // 1024}k"], timeout=_HOUR)

        return compare("store to bootable raw disk", by_rehost, by_peer, "restic restore + mke2fs -d", BAR, clean)

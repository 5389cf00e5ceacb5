"""Block copies of filesystems that the kernel has mounted and that are written to, judged by their own checkers."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rehost.progress import silent
from rehost.replication.block_converge import converge
from rehost.replication.block_transfer import transfer_blocks
from rehost.replication.store import Store
from rehost.source.agent_session import open_agent
from rehost.source.block_open import open_blocks
from rehost.source.block_session import Area
from rehost.source.connect import PathConnection
from tests.support.block_images import area_of, assemble, loop_of, mounted, tree_of, use

MIB = 1 << 20

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount"),
]

# How each is made, and who judges a copy. XFS' judge wants the log replayed first, by a mount.
KINDS = {
    "ext4": (["mke2fs", "-q", "-F", "-t", "ext4"], ["e2fsck", "-fn"]),
    "ext3": (["mke2fs", "-q", "-F", "-t", "ext3", "-b", "1024"], ["e2fsck", "-fn"]),
    "xfs": (["mkfs.xfs", "-q"], ["xfs_repair", "-n"]),
    "btrfs": (["mkfs.btrfs", "-q"], ["btrfs", "check"]),
}


class Held:
    """A freeze that lasts as long as its block."""

    def ended(self) -> bool:
        return False


@contextlib.contextmanager
def frozen(root: Path) -> Iterator[None]:
    subprocess.run(["fsfreeze", "-f", root], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", root], check=True)


@contextlib.contextmanager
def written_to(root: Path) -> Iterator[None]:
    """Somebody who writes, deletes and renames for the length of a block."""
    stop = threading.Event()

    def write() -> None:
        chance = random.Random(8)
        (root / "busy").mkdir(exist_ok=True)
        while not stop.is_set():
            path = root / "busy" / str(chance.randrange(60))
            path.write_bytes(chance.randbytes(chance.choice((50, 9000, 150_000))))
            if chance.random() < 0.3:
                path.unlink()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_copy_of_a_busy_filesystem_is_sound_and_holds_the_same_tree(kind: str, tmp_path: Path) -> None:
    make, judge = KINDS[kind]
    for program in (make[0], judge[0], "fsfreeze"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 400 * MIB)
    subprocess.run([*make, image], check=True, capture_output=True)
    target = tmp_path / "copy"
    with mounted(image, tmp_path / "mounted") as root, Store.open(tmp_path / "store") as store:
        use(root, 6)
        found = area_of(loop_of(image), mount_point="/")
        area = Area(0, 0, found.size_bytes, "partition", found.path, 0, mount_point="/")
        before: dict[str, str] = {}

        @contextlib.contextmanager
        def freeze() -> Iterator[Held]:
            with frozen(root):
                before.update(tree_of(root))
                yield Held()

        with open_agent(PathConnection(root="/")) as session, written_to(root):
            done = converge(
                open_blocks(session),
                store,
                [area],
                tmp_path,
                parent=None,
                freeze=freeze,
                written=None,
                still_seconds=60,
                progress=silent,
            )
        assert done.copy.regions[0].used_by == ("ext4" if kind == "ext3" else kind)
        assert done.copy.report.areas[0].reason == ""
        assert len(before) > 100
        assemble(done.copy.index, 0, store, target)
    with mounted(target, tmp_path / "again", "loop,nouuid" if kind == "xfs" else "loop") as root:
        assert tree_of(root) == before
        more = root / "more"  # what is not in use in the copy takes new files as the source would
        more.mkdir()
        use(more, 9)
    told = subprocess.run([*judge, target], capture_output=True, text=True, errors="replace", check=False)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-1000:]

    # Unmounted in the meantime: nothing but what the unmount wrote is new, and the copy needs no mount to be clean.
    with Store.open(tmp_path / "store") as store, open_agent(PathConnection(root="/")) as session:
        last = transfer_blocks(
            open_blocks(session),
            store,
            [area_of(image)],
            tmp_path / "last.parquet",
            parent=done.copy.index,
            state=lambda area: "off",
            progress=silent,
        )
        assert last.regions[0].used_by == done.copy.regions[0].used_by
        assemble(last.index, 0, store, target)
    told = subprocess.run([*judge, target], capture_output=True, text=True, errors="replace", check=False)
    assert told.returncode == 0, told.stdout[-3000:] + told.stderr[-1000:]

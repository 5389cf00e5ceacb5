"""File mode over SSH on loopback, beside restic to a local repository and rsync over the same SSH."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row, compare
from benchmarks.source import Restic, second_server, source, unpacked
from rehost.replication.export import export_tree
from rehost.replication.store import Store
from rehost.replication.tree import Tree

_LEVEL = 3
_MILLION = 1_000_000
_RESIDENT = 300 << 20
_SHARED_PART = 0.1


def debian_tree(tar: Path, scratch: Path) -> Iterator[Row]:
    """First copy, what is stored, nothing changed, restore, and a second server. `scratch` is an empty folder."""
    tree = unpacked(tar, scratch / "tree")
    restic, store = Restic(scratch), scratch / "store"
    with source(scratch / "sshd") as served:
        taken = []

        def clean() -> None:
            shutil.rmtree(store, ignore_errors=True)
            shutil.rmtree(restic.repository, ignore_errors=True)
            shutil.rmtree(scratch / "restic-cache", ignore_errors=True)
            restic.run("init")

        def first() -> float:
            taken.append(served.take(tree, store, level=_LEVEL))
            return taken[-1].seconds

        def backup() -> None:
            restic.run("backup", ".", cwd=tree)

        yield compare("files: first copy over SSH", first, backup, "restic backup, local", 0.9, clean)
        first()
        backup()
        first_id = taken[-1].snapshot
        yield Row(
            "files: stored", stored_bytes(store) / 1e6, stored_bytes(restic.repository) / 1e6, "restic", 0.65, unit="MB"
        )

        copy = scratch / "rsync"
        copy.mkdir()
        served.rsync(tree, copy)

        def again() -> float:
            return served.take(tree, store, level=_LEVEL, parent=first_id).seconds

        yield compare(
            "files: nothing changed over SSH", again, lambda: served.rsync(tree, copy), "rsync -aHAX over SSH", 1.2
        )
        shutil.rmtree(copy)

        restored = scratch / "restored"

        def restore() -> None:
            with Store.open(store) as opened:
                export_tree(Tree(opened.files(first_id), opened), restored)

        def restic_restore() -> None:
            restic.run("restore", "latest", "--target", str(restored))

        yield compare(
            "files: restore of the tree",
            restore,
            restic_restore,
            "restic restore",
            1.0,
            lambda: shutil.rmtree(restored, ignore_errors=True),
        )

        other = unpacked(second_server(), scratch / "other")
        sent = served.take(other, store, level=_LEVEL)
        yield Row(
            "files: content of a second server that is sent",
            sent.new / 1e6,
            sent.scanned / 1e6,
            "its content",
            _SHARED_PART,
            unit="MB",
        )


def million_files(scratch: Path) -> Iterator[Row]:
    """A million small files, first and nothing changed. `scratch` is an empty folder."""
    tree = scratch / "tree"
    for directory in range(1000):
        folder = tree / f"{directory // 100:02}" / f"{directory:04}"
        folder.mkdir(parents=True)
        for number in range(_MILLION // 1000):
            content = b"From: %d@example.org\nSubject: %d\n\n" % (number, directory * 7919 + number)
            (folder / f"message.{number:06}").write_bytes(content)
    restic, store = Restic(scratch), scratch / "store"
    restic.run("init")
    with source(scratch / "sshd") as served:
        taken = []

        def first() -> float:
            taken.append(served.take(tree, store, level=_LEVEL))
            return taken[-1].seconds

        def again() -> float:
            taken.append(served.take(tree, store, level=_LEVEL, parent=taken[0].snapshot))
            return taken[-1].seconds

        def backup() -> None:
            restic.run("backup", ".", cwd=tree)

        yield compare("a million files: first copy over SSH", first, backup, "restic backup, local", 1.0, rounds=1)
        yield compare("a million files: nothing changed", again, backup, "restic backup, local", 1.0, rounds=1)
        worker = max(one.resident for one in taken)
        yield Row("a million files: worker", worker / 1e6, _RESIDENT / 1e6, "300 MiB", 1.0, unit="MB")
        yield Row("a million files: agent", served.agent_resident / 1e6, _RESIDENT / 1e6, "300 MiB", 1.0, unit="MB")


def stored_bytes(folder: Path) -> int:
    """The sizes of all files below the folder."""
    return sum((Path(top) / name).stat().st_size for top, _, names in os.walk(folder) for name in names)

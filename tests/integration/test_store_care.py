"""Collecting beside running transfers of other processes, and killed at any moment: nothing that is needed goes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from rehost.replication.backends.local import LocalFolder
from rehost.replication.care import check, gc, stat
from rehost.replication.store import Store
from tests.support.store_writer import chunk, name

ROOT = Path(__file__).parents[2]
_WORKERS, _PASSES = 3, 14


def _collecting(place: LocalFolder) -> int:
    """A process that collects once and ends with 0."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            gc.collect(place, grace_seconds=0)
            status = 0
        finally:
            os._exit(status)
    return process


def test_collections_that_are_killed_beside_transfers_lose_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    Store.open(folder).close()
    draw = random.Random(11)
    passes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.store_passes", folder, str(seed), str(_PASSES)], cwd=ROOT
        )
        for seed in range(1, _WORKERS + 1)
    ]
    place, turn = LocalFolder(folder), 0
    try:
        while any(process.poll() is None for process in passes):
            collecting = _collecting(place)
            if turn % 2:
                time.sleep(draw.uniform(0, 0.4))  # a moment to kill it at, not one to wait for
                os.kill(collecting, signal.SIGKILL)
            status = os.waitpid(collecting, 0)[1]
            assert status in (0, signal.SIGKILL)
            turn += 1
    finally:
        for process in passes:
            process.kill() if process.poll() is None else None
            process.wait()
    assert [process.returncode for process in passes] == [0] * _WORKERS
    assert turn > 2
    Store.open(folder).close()  # what killed collections were writing is put right
    for _ in range(3):
        gc.collect(place, grace_seconds=0)
    found = check.check(place, read_data=True)
    assert found.sound and not found.findings
    told = stat.stat(place)
    assert (told.condemned_packs, told.missing_chunks, told.snapshots) == (0, 0, found.snapshots)
    with Store.open(folder) as store:
        everything = {name(content): content for content in (chunk(0, number) for number in range(60))}
        for made in store.snapshots():
            for names in store.files(made.id)["chunks"].to_pylist():
                for piece in names:
                    assert store.read_chunk(piece["sha256"]) == everything[piece["sha256"]]
            store.delete_snapshot(made.id)
    gc.collect(place, grace_seconds=0)
    assert not any((folder / "packs").iterdir()) and not any((folder / "indexes").iterdir())


def test_killed_at_random_moments_it_leaves_a_sound_store(tmp_path: Path) -> None:
    """Each time something is to be rewritten, condemned and deleted."""
    from tests.unit.test_store_care import chunks, save

    draw = random.Random(5)
    place = LocalFolder(tmp_path)
    for turn in range(8):
        contents = chunks(turn, 40)
        with Store.open(tmp_path) as store:
            for number in range(8):
                save(store, contents[number * 5 : number * 5 + 1])
                for content in contents[number * 5 + 1 : number * 5 + 5]:
                    store.put(name(content), content)
                store.flush()
        process = _collecting(place)
        time.sleep(draw.uniform(0, 0.3))  # a moment to kill it at, not one to wait for
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        found = check.check(place, read_data=True, report_only=True)
        assert not found.touched and not found.findings, found
    Store.open(tmp_path).close()
    gc.collect(place, grace_seconds=0)
    found = check.check(place, read_data=True)
    assert found.sound and not found.findings
    told = stat.stat(place)
    assert told.condemned_packs == 0 and told.live_share is not None and told.live_share > 0.9

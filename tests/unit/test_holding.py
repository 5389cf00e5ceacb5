"""The hold of a pass over its two stages: when it is made anew, and that nothing is kept of a hold that broke."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tasks.transfer as stage
from rehost.errors import SourceUnreachable
from rehost.replication.snapshots import Snapshot, VolumeConsistency
from rehost.source.hold_errors import SnapshotOverflow
from tests.support.wire import inventory


class _Holding:
    """A hold that writes down what is asked of it."""

    def __init__(self, method: str, breaks: bool = False) -> None:
        self.inventory = inventory()
        self.plan = SimpleNamespace(volumes=self.inventory.volumes, disks=())
        self.consistency = (VolumeConsistency(mount_point="/", method=method),)
        self.session = None
        self.is_open = True
        self.of_one_moment = method != "live"
        self.calls: list[str] = []
        self._breaks = breaks

    def open(self) -> None:
        self.calls.append("open")
        self.is_open = True

    def release(self) -> None:
        self.calls.append("release")
        if self._breaks:
            raise SnapshotOverflow(host="server", reason="it is full")

    def close(self) -> None:
        self.calls.append("close")
        self.is_open = False


def _transfer(holding: Any) -> Any:
    return stage.transfer.fn(None, Path("scan"), holding)  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "walks"), [("lvm", ["lvm"]), ("live", [])])
def test_another_try_holds_anew_and_looks_again_where_names_were_of_one_moment(
    monkeypatch: pytest.MonkeyPatch, method: str, walks: list[str]
) -> None:
    holding = _Holding(method)
    walked: list[str] = []
    tries = iter([SourceUnreachable(host="server", reason="gone"), None])

    def work(this: object, table: Path, held: object) -> str:
        if (error := next(tries)) is not None:
            raise error
        return table.name

    def walk(this: object, held: _Holding) -> Path:
        walked.append(held.consistency[0].method)
        return Path("again")

    monkeypatch.setattr(stage, "_transfer", work)
    monkeypatch.setattr(stage, "walk", walk)
    with pytest.raises(SourceUnreachable):
        _transfer(holding)
    assert holding.calls == ["close"] and not walked
    assert _transfer(holding) == ("again" if walks else "scan")
    assert (holding.calls, walked) == (["close", "open", "close"], walks)


def test_what_was_read_from_a_snapshot_that_overflowed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[str] = []

    class Kept:
        def __enter__(self) -> Kept:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def delete_snapshot(self, snapshot_id: str) -> None:
            kept.remove(snapshot_id)

        def latest_snapshot(self, source_id: str) -> None:
            return None

    def content(session: object, store: object, table: Path, *, snapshot: Snapshot, **_: object) -> tuple[Any, Any]:
        assert snapshot.consistency[0].method == "lvm"
        kept.append(snapshot.id)
        return snapshot, None

    monkeypatch.setattr(stage, "open_store", lambda *_, **__: Kept())
    monkeypatch.setattr(stage, "catalog", Kept)
    monkeypatch.setattr(stage, "transfer_content", content)
    this: Any = SimpleNamespace(
        progress=lambda name: None,
        source=SimpleNamespace(id="s-" + "0" * 20),
        job=SimpleNamespace(exclude=(), replication=SimpleNamespace(compress_level=0, checksum=False)),
    )
    holding: Any = _Holding("lvm", breaks=True)
    with pytest.raises(SnapshotOverflow):
        stage._transfer(this, Path("scan"), holding)
    assert not kept

"""LVM snapshots by programs that stand in for LVM's: what is asked of them, and that nothing stays."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rehost.agent import children, snapshot_lvm
from rehost.agent.guardian import Guardian
from rehost.agent.programs import Refused

GIB = 1 << 30
MIB = 1 << 20
_WAIT_SECONDS = 20.0

# lvs, lvcreate and lvremove over a file of rows, as JSON; each call is written down.
_LVM = """#!{python}
import json, os, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
folder = os.path.dirname(os.path.abspath(sys.argv[0]))
with open(folder + "/calls", "a") as calls:
    calls.write(json.dumps([name] + words) + "\\n")
with open(folder + "/state") as stream:
    rows = json.load(stream)
if name == "lvs":
    which = [word[1:] for word in words if word.startswith("@")]
    rows = [row for row in rows if not which or which[0] in row["lv_tags"].split(",")]
    print(json.dumps({{"report": [{{"lv": rows}}]}}))
elif name == "lvcreate":
    group, origin = words[-1].split("/")
    tags = [words[at + 1] for at, word in enumerate(words) if word == "--addtag"]
    snapshot = dict(rows[0], lv_name=words[words.index("--name") + 1], lv_tags=",".join(tags), lv_kernel_minor="9")
    snapshot.update(lv_attr="swi-a-s---", data_percent="0.01")
    rows.append(snapshot)
elif name == "lvremove":
    if os.path.exists(folder + "/busy"):
        os.unlink(folder + "/busy")
        sys.exit("  Logical volume is used by another device.")
    rows = [row for row in rows if row["vg_name"] + "/" + row["lv_name"] != words[-1]]
if name != "lvs":
    with open(folder + "/state.new", "w") as stream:
        json.dump(rows, stream)
    os.rename(folder + "/state.new", folder + "/state")
"""

ORIGIN = {
    "vg_name": "vg",
    "lv_name": "root",
    "lv_size": str(20 * GIB),
    "lv_attr": "-wi-ao----",
    "pool_lv": "",
    "lv_kernel_major": "253",
    "lv_kernel_minor": "0",
    "vg_free": str(8 * GIB),
    "vg_extent_size": str(4 * MIB),
    "data_percent": "",
    "lv_tags": "",
}
VOLUME = {
    "point": "/",
    "files": False,
    "blocks": True,
    "filesystem": "ext4",
    "number": "253:0",
    "inside": "/",
    "source": "/dev/mapper/vg-root",
}


class Lvm:
    """The programs and what they know."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in ("lvs", "lvcreate", "lvremove"):
            (folder / name).write_text(_LVM.format(python=sys.executable))
            (folder / name).chmod(0o755)
        self.have([ORIGIN])

    def have(self, rows: list[dict[str, str]]) -> None:
        (self._folder / "state").write_text(json.dumps(rows))

    def rows(self) -> list[dict[str, str]]:
        return list(json.loads((self._folder / "state").read_text()))

    def names(self) -> list[str]:
        return [row["lv_name"] for row in self.rows()]

    def calls(self, name: str) -> list[list[str]]:
        lines = (self._folder / "calls").read_text().splitlines()
        return [words for words in map(json.loads, lines) if words[0] == name]

    def be_busy_once(self) -> None:
        (self._folder / "busy").touch()


@pytest.fixture
def lvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lvm:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(snapshot_lvm, "_on_lvm", lambda number: number.startswith("253:"))
    return Lvm(folder)


BOOT = {**VOLUME, "point": "/boot", "number": "8:1", "files": True, "blocks": False}


def _order(*volumes: dict[str, Any], method: str = "auto", hooks: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"do": "hold", "volumes": volumes or (VOLUME,), "method": method, "hooks": hooks or {}}


def _until(fact: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not fact():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _held(volume: dict[str, Any] = VOLUME) -> dict[str, Any]:
    """How the volume is held; it is let go of again."""
    guardian = Guardian()
    answer = guardian.ask(_order(volume))
    assert guardian.ask({"do": "release"})["left"] == []
    guardian.let_go()
    return dict(answer["volumes"][0])


def test_a_snapshot_is_made_and_exactly_it_is_removed(lvm: Lvm) -> None:
    guardian = Guardian()
    [held] = guardian.ask(_order())["volumes"]
    [created] = lvm.calls("lvcreate")
    name = created[created.index("--name") + 1]
    assert (held["method"], held["device"]) == ("lvm", f"/dev/vg/{name}")
    assert created[created.index("--size") + 1] == f"{4 * GIB}b" and created[-1] == "vg/root"
    tags = lvm.rows()[1]["lv_tags"].split(",")
    assert tags[0] == "rehost" and children.alive(tags[1].removeprefix("rehost."))
    lvm.be_busy_once()
    answer = guardian.ask({"do": "release"})
    assert (answer["broken"], answer["left"]) == ([], [])
    assert lvm.names() == ["root"]
    assert [words[-1] for words in lvm.calls("lvremove")] == [f"vg/{name}"] * 2
    guardian.let_go()


def test_a_full_snapshot_is_told_of(lvm: Lvm) -> None:
    guardian = Guardian()
    guardian.ask(_order())
    rows = lvm.rows()
    lvm.have([rows[0], {**rows[1], "lv_attr": "swi-I-s---", "data_percent": "100.00"}])
    [broken] = guardian.ask({"do": "release"})["broken"]
    assert "full" in broken
    assert lvm.names() == ["root"]
    guardian.let_go()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_snapshot_goes_with_a_killed_agent(lvm: Lvm, number: int) -> None:
    ready, told = os.pipe()
    agent = os.fork()
    if agent == 0:
        Guardian().ask(_order())
        os.write(told, b"held")
        signal.pause()
        os._exit(0)
    try:
        assert os.read(ready, 4) == b"held"
        assert len(lvm.names()) == 2
        lvm.be_busy_once()
    finally:
        os.kill(agent, number)
        os.waitpid(agent, 0)
        os.close(ready)
        os.close(told)
    _until(lambda: lvm.names() == ["root"], "the snapshot outlived the agent")


def test_a_guardian_that_is_told_to_end_removes_too(lvm: Lvm) -> None:
    guardian = Guardian()
    guardian.ask(_order())
    os.kill(guardian.process, signal.SIGTERM)
    _until(lambda: lvm.names() == ["root"], "the snapshot outlived its guardian")
    with pytest.raises(RuntimeError):
        guardian.ask({"do": "release"})
    guardian.let_go()


def test_what_a_crash_left_is_removed_and_what_lives_is_not(lvm: Lvm) -> None:
    living = children.identity(os.getpid())
    dead = f"4194304.1.{living.split('.')[2]}"
    lvm.have(
        [
            ORIGIN,
            {**ORIGIN, "lv_name": "rehost_a", "lv_tags": f"rehost,rehost.{dead}"},
            {**ORIGIN, "lv_name": "rehost_b", "lv_tags": f"rehost,rehost.{living}"},
            {**ORIGIN, "lv_name": "backup", "lv_tags": "rehost"},
        ]
    )
    guardian = Guardian()
    answer = guardian.ask(_order(method="live"))
    assert answer["told"] == ["the LVM snapshot vg/rehost_a of an earlier run was removed"]
    assert lvm.names() == ["root", "rehost_b", "backup"]
    guardian.ask({"do": "release"})
    guardian.let_go()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"filesystem": "btrfs"}, "mixed up"),
        ({"number": "8:1"}, "no logical volume"),
        ({"number": "253:7"}, "no logical volume"),
    ],
)
def test_a_volume_that_can_have_no_snapshot_stays_live_and_says_why(
    lvm: Lvm, changes: dict[str, str], reason: str
) -> None:
    held = _held({**VOLUME, **changes})
    assert held["method"] == "live" and reason in held["detail"]
    assert lvm.names() == ["root"]


@pytest.mark.parametrize(
    ("volumes", "at_once", "at_the_end"),
    [
        ([VOLUME], ["pre_snapshot", "post_snapshot"], []),
        ([VOLUME, BOOT], ["pre_snapshot", "post_snapshot"], []),
        ([VOLUME, {**BOOT, "point": "/srv"}], ["pre_snapshot"], ["post_snapshot"]),
        ([{**VOLUME, "number": "8:1"}], [], []),  # its blocks: the hooks are run around the freeze
    ],
)
def test_the_second_hook_runs_as_soon_as_it_can(
    lvm: Lvm, volumes: list[dict[str, Any]], at_once: list[str], at_the_end: list[str]
) -> None:
    guardian = Guardian()
    answer = guardian.ask(_order(*volumes, hooks={"pre_snapshot": "true", "post_snapshot": "true"}))
    assert [hook["name"] for hook in answer["hooks"]] == at_once
    assert [hook["name"] for hook in guardian.ask({"do": "release"})["hooks"]] == at_the_end
    guardian.let_go()


def test_a_freeze_inside_a_hold_runs_no_hook_again(lvm: Lvm) -> None:
    hooks = {"pre_snapshot": "true", "post_snapshot": "true"}
    guardian = Guardian()
    guardian.ask(_order({**BOOT, "point": "/srv"}, hooks=hooks))
    for name in ("pre_snapshot", "post_snapshot"):
        assert guardian.ask({"do": "hook", "name": name, "hooks": hooks}) == {"hooks": []}
    assert [hook["name"] for hook in guardian.ask({"do": "release"})["hooks"]] == ["post_snapshot"]
    guardian.let_go()


def test_a_thin_volume_gets_a_thin_snapshot(lvm: Lvm) -> None:
    pool = {**ORIGIN, "lv_name": "pool", "lv_attr": "twi-aotz--", "data_percent": "50.00", "lv_kernel_minor": "1"}
    thin = {**ORIGIN, "lv_attr": "Vwi-aotz--", "pool_lv": "pool", "data_percent": "30.00", "vg_free": "0"}
    lvm.have([thin, pool])
    assert _held()["method"] == "lvm"
    [created] = lvm.calls("lvcreate")
    assert "--size" not in created and {"-K", "-kn"} <= set(created)
    lvm.have([thin, {**pool, "data_percent": "95.00"}])
    assert "95.00 %" in _held()["detail"]


@pytest.mark.parametrize(
    ("origin", "free", "expected"),
    [(20 * GIB, 8 * GIB, 4 * GIB), (2 * GIB, 8 * GIB, GIB), (20 * GIB, 3 * GIB + 1, 3 * GIB), (20 * GIB, GIB, GIB)],
)
def test_a_snapshot_gets_a_fifth_of_its_origin_or_what_there_is(origin: int, free: int, expected: int) -> None:
    assert snapshot_lvm.snapshot_bytes(origin, free, 4 * MIB) == expected


@pytest.mark.parametrize(("origin", "free"), [(20 * GIB, GIB - 1), (20 * MIB, 2 * MIB)])
def test_too_little_space_is_refused(origin: int, free: int) -> None:
    with pytest.raises(Refused):
        snapshot_lvm.snapshot_bytes(origin, free, 4 * MIB)

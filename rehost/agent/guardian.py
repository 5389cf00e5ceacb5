"""The process that holds a server still. It makes the snapshots and runs the hooks, and undoes all of it.

It is started before anything is made, and does everything itself: so there is no moment at which something is there
that it does not know of. It ends its work when it is told to, or when the agent is gone, however that came about.
"""

import importlib
import os
import signal
import time
from typing import Any, Dict, List, Optional, Tuple

from rehost.agent import children
from rehost.agent.children import Lines
from rehost.agent.programs import Refused, shell
from rehost.agent.room import Room

METHODS = ("lvm", "btrfs")  # best first; each is the class Snapshot of rehost.agent.snapshot_NAME
LIVE = "live"
_BOOT = ("/boot", "/boot/efi", "/efi")  # no service writes there: hooks are not for them
_WATCH_SECONDS = 1.0
_QUICK_SECONDS = 15.0  # for what is removed while somebody waits
_PATIENCE_SECONDS = 600.0  # for what somebody else keeps busy
_HOOK_SECONDS = 60.0


class Guardian:
    """The guardian as the agent sees it."""

    def __init__(self) -> None:
        agent = os.getpid()
        self.process, self._lines = children.start(lambda lines: _Guarding(lines, agent).run())

    def ask(self, order: Dict[str, Any]) -> Dict[str, Any]:
        """What it answers; raises RuntimeError where it ended."""
        try:
            self._lines.send(order)
            answer = self._lines.receive()
        except (OSError, EOFError):
            answer = None
        if answer is None:
            raise RuntimeError("the process that holds the server still ended")
        if "failed" in answer:
            raise RuntimeError(str(answer["failed"]))
        return answer

    def let_go(self) -> None:
        """It ends by itself once it has nothing left to undo; it is waited for only if it has ended."""
        self._lines.close()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            if os.waitpid(self.process, os.WNOHANG)[0]:
                return
            time.sleep(0.01)


class _Guarding:
    """The work of the process."""

    def __init__(self, lines: Lines, agent: int) -> None:
        self._lines = lines
        self._agent = agent
        self._owner = children.identity(os.getpid())
        self._stopped = False
        self._room: Optional[Room] = None
        self._taken: List[Any] = []
        self._hooks: Dict[str, Any] = {}
        self._post_due = False
        self._inside = False  # a hold

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            while not self._stopped and os.getppid() == self._agent:
                order = self._lines.receive(_WATCH_SECONDS)
                if order is not None:
                    self._answer(order)
        except (EOFError, OSError):
            pass  # the agent is gone
        finally:
            self._run_post()
            self._undo(_PATIENCE_SECONDS)

    def _stop(self, number: int, frame: Any) -> None:
        self._stopped = True

    def _answer(self, order: Dict[str, Any]) -> None:
        try:
            answer = {"hold": self._hold, "hook": self._hook, "release": self._release}[order["do"]](order)
        except Exception as error:
            answer = {"failed": "%s: %s" % (type(error).__name__, error)}
        self._lines.send(answer)

    # --- hold ---

    def _hold(self, order: Dict[str, Any]) -> Dict[str, Any]:
        self._hooks = order["hooks"]
        told = self._leftovers()
        plans = [self._plan(volume, str(order["method"])) for volume in order["volumes"]]
        hooks: List[Dict[str, Any]] = []
        if any(plan is not None or volume["files"] for (plan, _), volume in zip(plans, order["volumes"])):
            hooks += self._run_pre()
            if hooks and hooks[-1]["status"] != 0:
                return {"volumes": [], "hooks": hooks + self._run_post(), "told": told}
        made: Dict[str, Tuple[Any, Optional[str]]] = {}
        volumes = []
        for volume, (plan, reasons) in zip(order["volumes"], plans):
            held = {"method": LIVE, "detail": "; ".join(reasons), "root": None, "device": None}
            if plan is not None:
                try:
                    snapshot = self._take(plan, made, volume, told)
                    held = self._held(snapshot, volume)
                except Refused as refusal:
                    held["detail"] = "; ".join(reasons + ["%s: %s" % (plan.method, refusal)])
            volumes.append(held)
        waiting = [v for v, held in zip(order["volumes"], volumes) if v["files"] and held["method"] == LIVE]
        if all(volume["point"] in _BOOT for volume in waiting):
            hooks += self._run_post()
        return {"volumes": volumes, "hooks": hooks, "told": told}

    def _plan(self, volume: Dict[str, Any], method: str) -> Tuple[Any, List[str]]:
        """A snapshot to be made, or None; and why better ones cannot be."""
        if method == LIVE:
            return None, ["the job asks for it"]
        if volume.get("reason"):
            return None, [str(volume["reason"])]
        reasons: List[str] = []
        for name in METHODS:
            try:
                plan = _module(name).Snapshot(volume, self._owner)
                plan.method = name
                return plan, reasons
            except (Refused, OSError) as refusal:
                reasons.append("%s: %s" % (name, refusal))
        return None, reasons

    def _take(self, plan: Any, made: Dict[str, Any], volume: Dict[str, Any], told: List[str]) -> Any:
        """The snapshot, made now or for another mount of the same filesystem before."""
        if plan.key not in made:
            if self._room is None:
                self._room = Room()
            made[plan.key] = plan
            self._taken.append(plan)  # first: whatever is left half made is undone too
            try:
                told += plan.take(self._room)
                plan.root = plan.mount(self._room) if volume["files"] else None
            except Refused:
                del made[plan.key]
                raise
        snapshot = made[plan.key]
        if volume["files"] and snapshot.root is None:
            snapshot.root = snapshot.mount(self._room)
        return snapshot

    def _held(self, snapshot: Any, volume: Dict[str, Any]) -> Dict[str, Any]:
        root = snapshot.root
        if root is not None and snapshot.method != "btrfs" and volume["inside"] != "/":
            root += str(volume["inside"])  # a bind mount shows a part of its filesystem
        device = snapshot.device if volume["blocks"] else None
        return {"method": snapshot.method, "detail": snapshot.detail, "root": root, "device": device}

    def _leftovers(self) -> List[str]:
        found: List[str] = []
        for name in METHODS:
            found += _module(name).leftovers()
        return found

    # --- hooks ---

    def _hook(self, order: Dict[str, Any]) -> Dict[str, Any]:
        """Run the hooks around something else than a snapshot; inside a hold that awaits its end they have run."""
        if order["name"] == "pre_snapshot":
            self._inside = self._post_due
            if self._inside:
                return {"hooks": []}
            self._hooks = order["hooks"]
            hooks = self._run_pre()
            if hooks and hooks[-1]["status"] != 0:
                hooks += self._run_post()
            return {"hooks": hooks}
        return {"hooks": [] if self._inside else self._run_post()}

    def _run_pre(self) -> List[Dict[str, Any]]:
        self._post_due = bool(self._hooks.get("post_snapshot"))
        return self._run_hook("pre_snapshot")

    def _run_post(self) -> List[Dict[str, Any]]:
        if not self._post_due:
            return []
        self._post_due = False
        return self._run_hook("post_snapshot")

    def _run_hook(self, name: str) -> List[Dict[str, Any]]:
        text = self._hooks.get(name)
        if not text:
            return []
        status, said = shell(str(text), float(self._hooks.get("timeout_seconds", _HOOK_SECONDS)))
        return [{"name": name, "status": status, "output": said}]

    # --- the end ---

    def _release(self, order: Dict[str, Any]) -> Dict[str, Any]:
        hooks = self._run_post()
        broken = [reason for reason in (snapshot.broken() for snapshot in self._taken) if reason]
        return {"hooks": hooks, "broken": broken, "left": self._undo(_QUICK_SECONDS)}

    def _undo(self, seconds: float) -> List[str]:
        """Remove everything; what could not be removed in that time, and why."""
        deadline = time.monotonic() + seconds
        pause = 0.05
        while True:
            left = self._remove()
            if not self._taken or time.monotonic() + pause > deadline:
                return left
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _remove(self) -> List[str]:
        # What lies in a filesystem goes while that is mounted; devices go when nothing of theirs is mounted any more.
        left = self._removed(in_room=True)
        if self._room is not None:
            self._room.close()
            self._room = None
        return left + self._removed(in_room=False)

    def _removed(self, in_room: bool) -> List[str]:
        left = []
        for snapshot in [snapshot for snapshot in self._taken if (snapshot.device is None) == in_room]:
            try:
                snapshot.remove(self._room)
                self._taken.remove(snapshot)
            except Exception as error:
                left.append(str(error))
        return left


def _module(name: str) -> Any:
    return importlib.import_module("rehost.agent.snapshot_" + name)

"""Holds a source still while it is copied: snapshots for a pass, a freeze for its last moments.

The agent does it (rehost/agent/hold.py, rehost/agent/freeze.py); what it answers is checked here. Sources without a
running server behind them need none of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rehost.agent import protocol
from rehost.errors import SourceError
from rehost.replication.snapshots import VolumeConsistency
from rehost.replication.tree import printable
from rehost.source.agent_session import AgentSession
from rehost.source.hold_errors import HookFailed, SnapshotFreezeFailed, SnapshotFreezeLost, SnapshotOverflow
from rehost.source.inventory import Volume
from rehost.source.session import Session

log = logging.getLogger(__name__)

FREEZE_SECONDS = 10.0
_METHODS = ("lvm", "btrfs", "live")
_HOOKS = ("pre_snapshot", "post_snapshot")
_DETAIL = 2000
_OUTPUT = 20_000
_TOLD = 1000
_DEVICE = 4096


@dataclass(frozen=True, slots=True)
class Hooks:
    """Commands to run on the source, each by /bin/sh within so many seconds."""

    pre_snapshot: str | None = None
    post_snapshot: str | None = None
    timeout_seconds: int = 60


@dataclass(frozen=True, slots=True)
class HookRun:
    """A hook that ran. `status` is None where it had to be killed; `output` is the end of what it said."""

    name: str
    status: int | None
    output: str


@dataclass(frozen=True, slots=True)
class HeldVolume:
    """How one volume is held; its files are read where the agent knows them to be."""

    consistency: VolumeConsistency
    device: str | None  # where its blocks are read instead of its own device


@dataclass
class Held:
    """A source that is held still."""

    volumes: tuple[HeldVolume, ...]  # as they were asked for
    hooks: list[HookRun] = field(default_factory=list)
    told: tuple[str, ...] = ()  # what was found of earlier runs
    _session: AgentSession | None = None

    @property
    def consistency(self) -> tuple[VolumeConsistency, ...]:
        """What the manifest says of it."""
        return tuple(volume.consistency for volume in self.volumes)

    def release(self) -> None:
        """Let go of the source, and make sure that it was held until now; does nothing the second time.

        A copy is published after this, not before. Raises SnapshotOverflow, and what the session does.
        """
        session, self._session = self._session, None
        if session is None:
            return
        told = session.ask(protocol.RELEASE, {}, protocol.RELEASED)
        self.hooks += _hooks(session, told.get("hooks"))
        for left in _texts(session, told.get("left")):
            log.warning("%s: a snapshot is still there, its guardian goes on removing it: %s", session.host, left)
        broken = _texts(session, told.get("broken"))
        if broken:
            raise SnapshotOverflow(host=session.host, reason="; ".join(broken))


@contextlib.contextmanager
def hold(
    session: Session,
    volumes: Sequence[Volume],
    *,
    method: str = "auto",
    hooks: Hooks | None = None,
    blocks: Sequence[bool] | None = None,
) -> Iterator[Held]:
    """Hold these volumes still for the length of a block, each by the best method that it can have.

    `blocks` says of each whether it is read block by block; else it is read as files, and the session's scan and read
    go to the snapshot from here on. Sources that are files at rest (disk images, trees of this machine) need no
    holding: they answer `offline` and `live`, and no hook runs. On the way out the source is let go. Raises
    HookFailed, SnapshotOverflow, SourceProtocol and what the session does.
    """
    if not isinstance(session, AgentSession):
        detail = "the source is not running"
        if hooks is not None and (hooks.pre_snapshot or hooks.post_snapshot):
            log.warning("%s: the hooks were not run: %s", session.host, detail)
        at_rest = [VolumeConsistency(mount_point=v.mount_point, method="offline", detail=detail) for v in volumes]
        yield Held(tuple(HeldVolume(volume, None) for volume in at_rest))
        return
    held = _hold(session, volumes, method, hooks or Hooks(), blocks or [False] * len(volumes))
    try:
        yield held
    except BaseException:
        with contextlib.suppress(SourceError, RuntimeError):  # the connection may be what broke
            held.release()
        raise
    held.release()


def _hold(session: AgentSession, volumes: Sequence[Volume], method: str, hooks: Hooks, blocks: Sequence[bool]) -> Held:
    request = {
        "volumes": [
            [_path(volume.mount_point), not in_blocks, in_blocks]
            for volume, in_blocks in zip(volumes, blocks, strict=True)
        ],
        "method": method,
        "hooks": _asked(hooks),
    }
    told = session.ask(protocol.HOLD, request, protocol.HELD)
    ran = _hooks(session, told.get("hooks"))
    _refuse_failed(session, ran)
    answers = told.get("volumes")
    if not isinstance(answers, list) or len(answers) != len(volumes):
        raise session.violation("a hold of other volumes than were asked for")
    kept = tuple(_volume(session, volume, answer) for volume, answer in zip(volumes, answers, strict=True))
    return Held(kept, ran, _texts(session, told.get("told")), session)


@dataclass
class Frozen:
    """Filesystems whose writers wait."""

    hooks: list[HookRun]
    seconds: float = 0.0  # how long they waited, known at the end


@contextlib.contextmanager
def freeze(
    session: AgentSession, mount_points: Sequence[str], *, hooks: Hooks | None = None, seconds: float = FREEZE_SECONDS
) -> Iterator[Frozen]:
    """Freeze these filesystems for the length of a block, of at most so many seconds (10 are the most).

    On the way out they are thawed. Raises SnapshotFreezeFailed where one cannot be frozen, SnapshotFreezeLost where
    they were thawed before the block ended, so that what was read in it is worth nothing; HookFailed, SourceProtocol.
    """
    request = {
        "points": [_path(point) for point in mount_points],
        "seconds": seconds,
        "hooks": _asked(hooks or Hooks()),
    }
    told = session.ask(protocol.FREEZE, request, protocol.FROZEN)
    ran = _hooks(session, told.get("hooks"))
    _refuse_failed(session, ran)
    if told.get("refused") is not None:
        raise SnapshotFreezeFailed(host=session.host, reason=_text(told["refused"]))
    frozen = Frozen(ran)
    try:
        yield frozen
    except BaseException:
        with contextlib.suppress(SourceError, RuntimeError):
            session.ask(protocol.THAW, {}, protocol.THAWED)
        raise
    told = session.ask(protocol.THAW, {}, protocol.THAWED)
    match told:
        case {"held": bool(kept), "seconds": float(waited)}:
            frozen.seconds = waited
        case _:
            raise session.violation("a thaw without the facts that belong to it")
    frozen.hooks += _hooks(session, told.get("hooks"))
    if not kept:
        raise SnapshotFreezeLost(host=session.host, seconds=f"{waited:.1f}")


def _path(mount_point: str) -> str:
    return os.fsencode(mount_point).strip(b"/").decode("latin-1")


def _asked(hooks: Hooks) -> Mapping[str, Any]:
    return {name: getattr(hooks, name) for name in (*_HOOKS, "timeout_seconds")}


def _volume(session: AgentSession, volume: Volume, answer: object) -> HeldVolume:
    match answer:
        case {"method": str(method), "detail": str(detail), "device": str() | None as device} if method in _METHODS:
            pass
        case _:
            raise session.violation("a volume that is held in no way that there is")
    if device is not None and not (device.startswith("/dev/") and len(device) <= _DEVICE and "\0" not in device):
        raise session.violation("a snapshot on no device")
    told = VolumeConsistency(mount_point=volume.mount_point, method=method, detail=_text(detail))
    return HeldVolume(told, device)


def _hooks(session: AgentSession, told: object) -> list[HookRun]:
    if not isinstance(told, list) or len(told) > len(_HOOKS):
        raise session.violation("a wrong list of hooks")
    ran = []
    for item in told:
        match item:
            case {"name": str(name), "status": int() | None as status, "output": str(output)} if name in _HOOKS:
                ran.append(HookRun(name, status, printable(output[-_OUTPUT:].encode("utf-8", "replace"))))
            case _:
                raise session.violation("a wrong list of hooks")
    for hook in ran:
        level = logging.INFO if hook.status == 0 else logging.WARNING
        log.log(level, "%s: the hook %s ended with %s: %s", session.host, hook.name, hook.status, hook.output)
    return ran


def _refuse_failed(session: AgentSession, ran: Sequence[HookRun]) -> None:
    for hook in ran:
        if hook.name == "pre_snapshot" and hook.status != 0:
            reason = "took too long and was killed" if hook.status is None else f"ended with status {hook.status}"
            raise HookFailed(host=session.host, name=hook.name, reason=reason, output=hook.output[-300:] or "nothing")


def _texts(session: AgentSession, told: object) -> tuple[str, ...]:
    if not isinstance(told, list) or len(told) > _TOLD or not all(isinstance(text, str) for text in told):
        raise session.violation("a wrong list of sentences")
    return tuple(_text(text) for text in told)


def _text(told: object) -> str:
    return printable(str(told)[:_DETAIL].encode("utf-8", "replace"))

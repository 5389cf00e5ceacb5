"""The agent's side of changed-block tracking: starts the tracker, speaks with it, and ends it.

The tracker is a process of its own, so that it keeps up whatever the agent does, and outlives it where it shall. Its
text comes with the request that starts it.
"""

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from rehost.agent import protocol
from rehost.agent.trace_kinds import TRACED, TRACED_BITS, UNIT, VERSION
from rehost.agent.tracing import TracingUnavailable, disk_of

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 120.0
_OPTIONS = ["-I", "-S", "-B"]  # `site` would take five megabytes more
_JOB = re.compile(r"[a-z0-9-]{1,64}")
_FOLDER = "/run/rehost-track-"
_PROPERTIES = [["--collect", "--property=MemoryMax=64M"], []]  # the second for a systemd that does not know them


class NotTracked(Exception):
    """There is no tracker, and the message says why."""


class Conversation:
    """A tracker that listens."""

    def __init__(self, speaker: socket.socket) -> None:
        speaker.settimeout(_ANSWER_SECONDS)
        self._socket = speaker
        self._held = b""

    def ask(self, **request: Any) -> Tuple[Dict[str, Any], List[bytes]]:
        """What it answers, and the bitmaps. Raises NotTracked."""
        try:
            self._socket.sendall(json.dumps(request).encode("ascii") + b"\n")
            while b"\n" not in self._held:
                self._more()
            line, _, self._held = self._held.partition(b"\n")
            answer = dict(json.loads(line.decode("ascii")))
            if "failed" in answer:
                raise NotTracked(str(answer["failed"]))
            bitmaps = []
            for length in answer.get("bits", []):
                while len(self._held) < length:
                    self._more()
                bitmaps.append(self._held[:length])
                self._held = self._held[length:]
            return answer, bitmaps
        except (OSError, EOFError) as error:
            raise NotTracked("the tracker does not answer") from error

    def process(self) -> int:
        """The id of the tracker's process."""
        told = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", told)[0])

    def close(self) -> None:
        """Leave it. A tracker of one session ends by that."""
        self._socket.close()

    def _more(self) -> None:
        piece = self._socket.recv(1 << 20)
        if not piece or len(self._held) > protocol.FRAME_BYTES:
            raise EOFError
        self._held += piece


def start_session(names: List[str], program: str) -> Conversation:
    """A tracker for this session alone; it ends with its conversation, however that ends. Raises NotTracked."""
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with theirs:
        argv = [sys.executable or "python3"] + _OPTIONS + ["/dev/fd/%d" % reading, ",".join(names)]
        try:
            null = subprocess.DEVNULL
            subprocess.Popen(argv, stdin=theirs.fileno(), stdout=null, pass_fds=[reading], start_new_session=True)
        except OSError as error:
            os.close(writing)
            raise NotTracked("the tracker does not start: %s" % error) from error
        finally:
            os.close(reading)
    with open(writing, "w") as file:
        file.write(program)
    conversation = Conversation(ours)
    conversation.ask(ask="state")
    return conversation


def start_resident(job: str, names: List[str], program: str) -> Conversation:
    """The tracker that stays for a job: the one that is there if it fits, else a new one. Raises NotTracked."""
    try:
        disks = [disk_of(name) for name in names]
    except TracingUnavailable as error:
        raise NotTracked(str(error)) from error
    conversation = _connect(_folder(job))
    if conversation is not None:
        try:
            state, _ = conversation.ask(ask="state")
            told = [[disk.name, disk.size_bytes, disk.identity] for disk in disks]
            if state.get("version") == VERSION and state["disks"] == told:
                return conversation
        except (NotTracked, KeyError):
            pass
        conversation.close()
    stop_resident(job)
    folder = _folder(job)
    try:
        os.mkdir(folder, 0o700)
        with open(folder + "/program.py", "w") as file:
            file.write(program)
        _launch(job, [sys.executable or "python3"] + _OPTIONS + [folder + "/program.py", ",".join(names), folder])
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise NotTracked("the tracker does not start: %s" % error) from error
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and os.path.isdir(folder):
        conversation = _connect(folder)
        if conversation is not None:
            conversation.ask(ask="state")
            return conversation
        time.sleep(0.05)
    stop_resident(job)
    raise NotTracked("the tracker does not start")


def stop_resident(job: str) -> None:
    """End a job's tracker, and take away what it had; nothing happens where there is none."""
    folder = _folder(job)
    conversation = _connect(folder)
    if conversation is not None:
        process = conversation.process()
        try:
            conversation.ask(ask="stop")
            deadline = time.monotonic() + _STOP_SECONDS
            while os.path.exists(folder) and time.monotonic() < deadline:
                time.sleep(0.02)
        except NotTracked:
            pass
        conversation.close()
        if os.path.exists(folder):
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:
                pass
    elif os.path.exists(folder) and _systemd():
        subprocess.call(["systemctl", "stop", UNIT + job], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    shutil.rmtree(folder, ignore_errors=True)


def _launch(job: str, argv: List[str]) -> None:
    """Start a program that outlives this session: as a unit of systemd, or by itself."""
    if _systemd():
        for properties in _PROPERTIES:
            unit = ["systemd-run", "--quiet", "--unit=" + UNIT + job] + properties
            if not subprocess.call(
                unit + argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ):
                return
    null = subprocess.DEVNULL
    subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True, cwd="/")


def _systemd() -> bool:
    return os.path.isdir("/run/systemd/system") and shutil.which("systemd-run") is not None


def _folder(job: str) -> str:
    if not _JOB.fullmatch(job):
        raise ValueError("a job of that name cannot be tracked")
    return _FOLDER + job


def _connect(folder: str) -> Optional[Conversation]:
    speaker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.lstat(folder).st_uid != os.geteuid():
            raise NotTracked("%s is another user's" % folder)
        speaker.connect(folder + "/socket")
    except OSError:
        speaker.close()
        return None
    return Conversation(speaker)


class _Served:
    """The tracker that this agent speaks with."""

    conversation = None  # type: Optional[Conversation]


def serve(context: Any, body: bytes) -> None:
    """TRACE: one question to a tracker; it is answered by TRACED, and by TRACED_BITS for each bitmap that was told."""
    request = dict(json.loads(body.decode("ascii")))
    bitmaps = []  # type: List[bytes]
    try:
        answer, bitmaps = _serve(request)
    except NotTracked as error:
        answer = {"failed": str(error)}
    context.output.send(TRACED, json.dumps(answer).encode("ascii"))
    for bits in bitmaps:
        context.output.send(TRACED_BITS, *context.codec(1).pack(bits))


def _serve(request: Dict[str, Any]) -> Tuple[Dict[str, Any], List[bytes]]:
    ask = request["ask"]
    if ask in ("start", "remove") and _Served.conversation is not None:
        _Served.conversation.close()
        _Served.conversation = None
    if ask == "remove":
        stop_resident(str(request["job"]))
        return {}, []
    if ask == "start":
        names, program = [str(name) for name in request["disks"]], str(request["program"])
        if request["job"] is None:
            _Served.conversation = start_session(names, program)
        else:
            _Served.conversation = start_resident(str(request["job"]), names, program)
        return _Served.conversation.ask(ask="state")
    if _Served.conversation is None:
        raise NotTracked("no tracker was started")
    return _Served.conversation.ask(**request)

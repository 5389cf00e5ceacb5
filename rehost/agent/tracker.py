"""The tracker: a program that notes what is written to some disks, and tells it when it is asked.

It is the agent's child for one session, or stays on the server between sessions. It is asked in lines of JSON, one
object each, and answers with one object a line; `bits` in an answer gives the lengths of the bitmaps that follow it.

What was told is kept until the snapshot that was made of it is known to be published: `prepare` names that snapshot
before it is published, `commit` after. A `begin` that follows neither puts back what was told, so a pass that failed
misses nothing. A `begin` whose parent is the snapshot that was only prepared knows by that that it was published.
"""

import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from rehost.agent.trace_kinds import VERSION
from rehost.agent.tracing import Bitmap, BlockTracer, TracingUnavailable

IDLE_SECONDS = 40 * 86_400.0  # a tracker that nobody asks for so long ends
_REQUEST_BYTES = 4096
_ANSWER_SECONDS = 30.0
_PAUSES = (0.005, 0.1)  # seconds between two looks into the ring buffers: while much is written, and else
_CHECK_SECONDS = 1.0  # between two looks at whether the tracing still runs, beside that of each take
_MUCH_BYTES = 65_536


class Changes:
    """The two-phase account of what was written."""

    def __init__(self, tracer: BlockTracer) -> None:
        self._tracer = tracer
        self.generation = os.urandom(16).hex()
        self._base = None  # type: Optional[str]  # the snapshot that all changes since are known of
        self._prepared = None  # type: Optional[str]
        self._told = [Bitmap(disk.size_bytes, tracer.block_bytes) for disk in tracer.disks]
        self._told_lost = None  # type: Optional[str]
        self._lost = None  # type: Optional[str]

    def begin(self, parent: Optional[str]) -> Optional[str]:
        """A pass begins: why it must be a full one, or None where the takes tell all that changed since `parent`."""
        if parent is not None and parent == self._prepared:
            self._commit(parent)
        for bitmap, told in zip(self._tracer.bitmaps, self._told):
            bitmap.merge(told.take())
        self._lost = self._lost or self._told_lost
        self._told_lost = self._prepared = None
        if self._base is None:
            return "the tracker has just been started"
        if parent is None or parent != self._base:
            return "the tracker knows what changed since another snapshot"
        return self._lost or self._tracer.check()

    def take(self) -> Tuple[List[bytes], Optional[str]]:
        """What was written since the last take, and why that may not be all."""
        bitmaps, lost = self._tracer.take()
        lost = self._lost or lost
        for told, bits in zip(self._told, bitmaps):
            told.merge(bits)
        self._told_lost, self._lost = self._told_lost or lost, None
        self._prepared = None  # a snapshot that was prepared before has not got this
        return bitmaps, lost

    def prepare(self, snapshot: str) -> None:
        """A snapshot of this name is about to be published, made of all that was told."""
        self._prepared = snapshot

    def commit(self, snapshot: str) -> bool:
        """It was published: what was told until it was prepared is forgotten. False: it was not prepared."""
        if snapshot != self._prepared:
            return snapshot == self._base
        self._commit(snapshot)
        return True

    def _commit(self, snapshot: str) -> None:
        self._base, self._prepared, self._told_lost = snapshot, None, None
        for told in self._told:
            told.take()

    def state(self) -> Dict[str, Any]:
        """What the tracker is."""
        return {
            "version": VERSION,
            "generation": self.generation,
            "base": self._base,
            "block_bytes": self._tracer.block_bytes,
            "disks": [[disk.name, disk.size_bytes, disk.identity] for disk in self._tracer.disks],
        }


class Server:
    """Answers one asker after the other, and empties the ring buffers meanwhile."""

    def __init__(self, tracer: BlockTracer, idle_seconds: float = IDLE_SECONDS) -> None:
        self._tracer = tracer
        self._changes = Changes(tracer)
        self._idle_seconds = idle_seconds
        self._pause = _PAUSES[0]
        self._looked = self._checked = 0.0

    def listen(self, listener: socket.socket) -> None:
        """Serve who connects, until one says stop or nobody came for long."""
        asked = time.monotonic()
        while time.monotonic() - asked < self._idle_seconds:
            if self._wait(listener):
                with listener.accept()[0] as asker:
                    if not self.converse(asker):
                        return
                asked = time.monotonic()

    def converse(self, asker: socket.socket) -> bool:
        """Answer one asker until it goes. False: it said stop."""
        asker.settimeout(_ANSWER_SECONDS)
        line = b""
        while True:
            while b"\n" not in line:
                while not self._wait(asker):
                    pass
                try:
                    piece = asker.recv(_REQUEST_BYTES)
                except OSError:
                    return True
                line += piece
                if not piece or len(line) > _REQUEST_BYTES:
                    return True
            request, _, line = line.partition(b"\n")
            stop, answer = self._answer(json.loads(request.decode("ascii")))
            try:
                for piece in answer:
                    asker.sendall(piece)
            except OSError:
                return not stop
            if stop:
                return False

    def _answer(self, request: Dict[str, Any]) -> Tuple[bool, List[bytes]]:
        ask = request["ask"]
        answer = {}  # type: Dict[str, Any]
        bitmaps = []  # type: List[bytes]
        if ask == "state":
            answer = self._changes.state()
        elif ask == "begin":
            answer["full"] = self._changes.begin(request["parent"])
        elif ask == "take":
            bitmaps, answer["lost"] = self._changes.take()
            answer["bits"] = [len(bits) for bits in bitmaps]
        elif ask == "prepare":
            self._changes.prepare(request["snapshot"])
        elif ask == "commit":
            answer["done"] = self._changes.commit(request["snapshot"])
        return ask == "stop", [json.dumps(answer).encode("ascii") + b"\n"] + bitmaps

    def _wait(self, what: socket.socket) -> bool:
        """Wait for a word, or for the time to look into the ring buffers; whether there is a word."""
        left = self._looked + self._pause - time.monotonic()
        ready = bool(select.select([what], [], [], max(0.0, left))[0])
        if time.monotonic() >= self._looked + self._pause:
            much = self._tracer.drain() > _MUCH_BYTES
            self._looked = time.monotonic()
            self._pause = _PAUSES[0] if much else min(self._pause * 2, _PAUSES[1])
            if self._looked >= self._checked + _CHECK_SECONDS:
                self._checked = self._looked
                self._tracer.check()
        return ready


def session(names: List[str], buffer_kib: int = 0) -> None:
    """Serve over standard input, a socket, until it ends."""
    with socket.socket(fileno=os.dup(0)) as asker:
        try:
            tracer = BlockTracer(names, buffer_kib)
        except TracingUnavailable as error:
            refuse(asker, str(error))
            return
        try:
            Server(tracer).converse(asker)
        finally:
            tracer.close()


def resident(names: List[str], folder: str, buffer_kib: int = 0, idle_seconds: float = IDLE_SECONDS) -> None:
    """Serve over the socket in that folder, until told to stop, or not asked for long; then the folder goes too."""
    path = folder + "/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            tracer = BlockTracer(names, buffer_kib)
        except TracingUnavailable as error:
            # Whoever started it waits for an answer.
            listener.bind(path)
            listener.listen(1)
            listener.settimeout(_ANSWER_SECONDS)
            try:
                with listener.accept()[0] as asker:
                    refuse(asker, str(error))
            except OSError:
                pass
            remove_folder(folder)
            return
        try:
            listener.bind(path)
            listener.listen(8)
            Server(tracer, idle_seconds).listen(listener)
        finally:
            tracer.close()
            remove_folder(folder)  # last: where it is gone, all is gone


def refuse(asker: socket.socket, reason: str) -> None:
    """Answer whatever is asked by why nothing is tracked."""
    asker.recv(_REQUEST_BYTES)
    asker.sendall(json.dumps({"failed": reason[:300]}).encode("ascii") + b"\n")


def remove_folder(folder: str) -> None:
    """Take away the folder of a resident tracker."""
    for name in ("socket", "program.py"):
        try:
            os.unlink(folder + "/" + name)
        except OSError:
            pass
    try:
        os.rmdir(folder)
    except OSError:
        pass


def main() -> None:
    """The program's arguments: names of disks by commas, then the folder of a resident tracker, if it is one."""
    names = sys.argv[1].split(",")
    if len(sys.argv) > 2:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        resident(names, sys.argv[2])
    else:
        session(names)

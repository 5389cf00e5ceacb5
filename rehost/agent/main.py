"""The agent's life: a hello, then one request after the other, until standard input ends."""

import importlib
import json
import os
import queue
import select
import sys
import threading
from typing import Any, Dict, List, Optional, Tuple

from rehost.agent import block_kinds, protocol, trace_kinds
from rehost.agent.interpreter import interpreter
from rehost.agent.output import Output, with_large_pipe
from rehost.agent.walk import Walker

_Frame = Tuple[int, bytes]

# What serves a request, by its kind: "module:function", imported when it is first asked for. It is called with the
# Context and the body of the request's frame, and may take further frames from `context.control`.
HANDLERS = {
    protocol.INVENTORY: "rehost.agent.inventory:serve",
    protocol.SCAN: "rehost.agent.scan:serve",
    protocol.READ: "rehost.agent.read:serve",
    protocol.HOLD: "rehost.agent.hold:hold",
    protocol.RELEASE: "rehost.agent.hold:release",
    protocol.FREEZE: "rehost.agent.freeze:freeze",
    protocol.THAW: "rehost.agent.freeze:thaw",
    protocol.WHEELS: "rehost.agent.wheels:serve",
    trace_kinds.TRACE: "rehost.agent.tracking:serve",
    block_kinds.USED_BLOCKS: "rehost.agent.block_frames:serve_used",
    block_kinds.READ_BLOCKS: "rehost.agent.block_frames:serve_read",
}


class Input:
    """Reads frames for ever. When they end, or stay away, the agent ends with them, whatever else it does."""

    def __init__(self, fd: int, output: Output) -> None:
        self._fd = fd
        self._output = output
        self.requests: "queue.Queue[_Frame]" = queue.Queue()
        self.answers: "queue.Queue[Tuple[int, bytes]]" = queue.Queue()

    def run(self) -> None:
        try:
            while True:
                kind, body = self._frame()
                if kind == protocol.LIMIT:
                    self._output.limit(float(json.loads(body.decode("ascii"))["bytes_per_second"]))
                elif kind == protocol.WANT:
                    (number,) = protocol.ASK_HEAD.unpack_from(body)
                    self.answers.put((number, body[protocol.ASK_HEAD.size :]))
                elif kind != protocol.PING:
                    self.requests.put((kind, body))
        finally:
            os._exit(0)

    def _frame(self) -> _Frame:
        kind, length = protocol.HEADER.unpack(self._exactly(protocol.HEADER.size))
        if length > protocol.FRAME_BYTES:
            raise ValueError("a frame is too long")
        return kind, self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        pieces: List[bytes] = []
        while count:
            if not select.select([self._fd], [], [], protocol.SILENCE_SECONDS)[0]:
                raise EOFError
            piece = os.read(self._fd, min(count, 1 << 20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)


def serve(token: str, root: bytes) -> None:
    """Speak with the control side over what were standard input and output, until it goes."""
    # Programs that the inventory runs, and stray prints, must not meet the frames.
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.close(null)
    with_large_pipe(sink)
    output = Output(sink)
    output.raw(protocol.MARKER + token.encode("ascii"))
    output.send(protocol.HELLO, _json(_hello()))
    control = Input(source, output)
    threading.Thread(target=control.run, daemon=True).start()
    try:
        _serve(control, output, root)
    except BaseException as error:
        _tell_failure(output, error)
        os._exit(1)


class Context:
    """What the handlers of requests work with, the same for all of a session."""

    def __init__(self, output: Output, control: Input, start: Dict[str, Any], root: bytes) -> None:
        self.output = output
        self.control = control  # .requests: further frames (kind, body); .answers: those to questions (number, body)
        self.start = start  # what START said
        self.root = root
        self._walker: Optional[Walker] = None

    @property
    def walker(self) -> Walker:
        """Opens what is below the root."""
        if self._walker is None:
            self._walker = Walker(self.root)
        return self._walker

    def fail(self, error: BaseException) -> None:
        """End the agent by an error of any thread, which the other side is told of."""
        _tell_failure(self.output, error)
        os._exit(1)

    def codec(self, level: int) -> protocol.Codec:
        """Packs at that level, by the codec that was agreed upon; not for two threads at once."""
        return protocol.Codec(self.start["codec"], level)


def _serve(control: Input, output: Output, root: bytes) -> None:
    kind, body = control.requests.get()
    if kind != protocol.START:
        raise ValueError("the first frame is not a start")
    start = _object(body)
    output.limit(float(start["bytes_per_second"]))
    os.nice(int(start["nice"]))
    threading.Thread(target=output.keep_alive, daemon=True).start()
    context = Context(output, control, start, root)
    while True:
        kind, body = control.requests.get()
        if kind not in HANDLERS:
            raise ValueError("frame kind %d is not known" % kind)
        module, _, function = HANDLERS[kind].partition(":")
        getattr(importlib.import_module(module), function)(context, body)


def _hello() -> Dict[str, Any]:
    return {
        "protocol": protocol.PROTOCOL,
        "python": sys.version.split()[0],
        "machine": os.uname().machine,
        "hostname": os.uname().nodename,
        "uid": os.geteuid(),
        "hashes": protocol.hashes(),
        "codecs": protocol.codecs(),
        "interpreter": interpreter(),
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _object(body: bytes) -> Dict[str, Any]:
    return dict(json.loads(body.decode("ascii")))


def _tell_failure(output: Output, error: BaseException) -> None:
    told = {"type": type(error).__name__, "message": str(error)[:500], "errno": getattr(error, "errno", None)}
    try:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)
    except Exception:  # what is told matters more
        pass
    try:
        output.send(protocol.FAILED, _json(told))
    except OSError:
        pass

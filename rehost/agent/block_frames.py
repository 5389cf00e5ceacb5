"""The agent's two requests about blocks: which are in use, and what some of them hold."""

import json
import os
import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Deque, Dict, Iterator, List, Optional

from rehost.agent import block_kinds
from rehost.agent.block_device import Area, Device
from rehost.agent.blocks import JOB_BLOCKS, BlockReader, Found, Piece
from rehost.agent.used import copied_blocks
from rehost.agent.used_rules import LIVE, STATES

_BUNDLES_AHEAD = 4
_SYNC_SECONDS = 30.0


def serve_used(context: Any, body: bytes) -> None:
    """USED_BLOCKS: the map of an area, as frames RUNS and at the end USED."""
    told = _object(body)
    state = str(told["state"])
    if state not in STATES:
        raise ValueError("the state %s is not known" % state)
    with Device(_area(told)) as device:
        used = copied_blocks(device, state, _written_out if state == LIVE else _nothing)
    step = 2 * block_kinds.RUNS_IN_FRAME
    codec = context.codec(1)
    for at in range(0, len(used.runs), step):
        part = used.runs[at : at + step]
        context.output.send(block_kinds.RUNS, *codec.pack(b"".join(_runs(part))))
    end = {
        "rule": used.rule,
        "used_bytes": used.used_bytes,
        "filesystem": used.filesystem,
        "reason": used.reason[:300],
    }
    context.output.send(block_kinds.USED, json.dumps(end).encode("ascii"))


def _runs(part: Any) -> Iterator[bytes]:
    for at in range(0, len(part), 2):
        yield block_kinds.RUN.pack(part[at], part[at + 1])


def serve_read(context: Any, body: bytes) -> None:
    """READ_BLOCKS: pieces are asked for while others are read; FOUND tells of them, CONTENT brings what is wanted."""
    told = _object(body)
    reader = BlockReader(_area(told), str(told["hash"]))
    answers = _Answers(context)
    batch = Found()
    held = 0
    for found in reader.read(_pieces(context)):
        batch.states += found.states
        batch.hashes += found.hashes
        batch.names += found.names
        batch.contents += found.contents
        held += sum(len(content) for content in found.contents)
        if len(batch.states) >= block_kinds.FOUND_BLOCKS - JOB_BLOCKS or held >= block_kinds.FOUND_BYTES:
            answers.ask(batch)
            batch, held = Found(), 0
    if batch.states:
        answers.ask(batch)
    answers.finish()
    context.output.send(block_kinds.BLOCKS_READ, b"{}")


def _pieces(context: Any) -> Iterator[Piece]:
    while True:
        kind, body = context.control.requests.get()
        if kind == block_kinds.PIECES_END:
            return
        if kind != block_kinds.PIECE:
            raise ValueError("frame kind %d inside a reading of blocks" % kind)
        count, blocks = block_kinds.PIECE_HEAD.unpack_from(body)
        at = block_kinds.PIECE_HEAD.size
        end = at + count * block_kinds.RUN.size
        runs = list(block_kinds.RUN.iter_unpack(body[at:end]))
        if sum(run[1] for run in runs) != blocks or len(body) != end + blocks * block_kinds.HASH_BYTES:
            raise ValueError("a piece of a wrong length")
        yield runs, body[end:]


class _Answers(object):
    """Asks which of the new blocks are wanted, and sends those, in a thread of its own."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._level = int(context.start["level"])
        self._number = 0
        self._ahead = threading.Semaphore(block_kinds.BATCHES_AHEAD)
        self._batches: "queue.Queue[Optional[Found]]" = queue.Queue()
        self._broken: Optional[BaseException] = None
        self._local = threading.local()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ask(self, batch: Found) -> None:
        """Tell what was found; waits while too many batches wait for their answer."""
        self._ahead.acquire()
        if self._broken is not None:
            raise self._broken
        head = block_kinds.FOUND_HEAD.pack(self._number, len(batch.states), len(batch.names))
        hashes, names = b"".join(batch.hashes), b"".join(batch.names)
        self._context.output.send(block_kinds.FOUND, head, bytes(batch.states), hashes, names)
        self._number += 1
        self._batches.put(batch)

    def finish(self) -> None:
        """Wait until the last answer was served."""
        self._batches.put(None)
        self._thread.join()
        if self._broken is not None:
            raise self._broken

    def _run(self) -> None:
        try:
            number = 0
            with ThreadPoolExecutor(2) as pool:
                while True:
                    batch = self._batches.get()
                    if batch is None:
                        return
                    if batch.names:  # else there is nothing to answer
                        answered, wanted = self._context.control.answers.get()
                        if answered != number or len(wanted) != len(batch.names):
                            raise ValueError("an answer to another question")
                        self._send([c for c, want in zip(batch.contents, wanted) if want], batch, pool)
                    number += 1
                    self._ahead.release()
        except BaseException as error:  # the reading thread tells of it
            self._broken = error
            self._ahead.release()

    def _send(self, contents: List[bytes], batch: Found, pool: ThreadPoolExecutor) -> None:
        batch.contents = []
        packed: Deque[Any] = deque()
        bundle: List[bytes] = []
        held = 0
        for content in contents:
            if held + len(content) > block_kinds.CONTENT_BYTES:
                packed.append(pool.submit(self._pack, bundle))
                bundle, held = [], 0
                if len(packed) >= _BUNDLES_AHEAD:
                    self._context.output.send(block_kinds.CONTENT, *packed.popleft().result())
            bundle.append(content)
            held += len(content)
        if bundle:
            packed.append(pool.submit(self._pack, bundle))
        while packed:
            self._context.output.send(block_kinds.CONTENT, *packed.popleft().result())

    def _pack(self, bundle: List[bytes]) -> List[bytes]:
        codec = getattr(self._local, "codec", None)
        if codec is None:
            codec = self._local.codec = self._context.codec(self._level)
        pieces = [block_kinds.CONTENT_HEAD.pack(len(bundle))]
        pieces += codec.pack(b"".join(bundle))
        return pieces


def _area(told: Dict[str, Any]) -> Area:
    return Area(str(told["path"]).encode("latin-1"), int(told["offset"]), int(told["size"]), bool(told.get("file")))


def _object(body: bytes) -> Dict[str, Any]:
    return dict(json.loads(body.decode("ascii")))


def _written_out() -> None:
    """Have the system write what it holds in memory, without waiting for ever: another filesystem may hang."""
    writing = threading.Thread(target=os.sync, daemon=True)
    writing.start()
    writing.join(_SYNC_SECONDS)


def _nothing() -> None:
    """What is still, or off, has nothing to write."""

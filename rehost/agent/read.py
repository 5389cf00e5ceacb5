"""Reads files: cuts them into chunks, names the chunks by SHA-256, and sends those that the other side lacks.

The main thread reads and hashes ahead; a second thread packs and sends what was answered. Batches between them are
bounded, so memory is too.
"""

import errno
import hashlib
import json
import os
import queue
import stat
import threading
import time
from typing import Any, Iterable, Iterator, List, Optional, Tuple

from rehost.agent.output import Output
from rehost.agent.protocol import (
    ASK,
    ASK_HEAD,
    ASK_ROW,
    BATCH_BYTES,
    BATCH_NAMES,
    BATCHES_AHEAD,
    DATA,
    DONE,
    REQUEST,
    REQUESTED,
    RESULT,
    Codec,
)
from rehost.agent.walk import Walker

CHUNK_BYTES = 1 << 20  # content is cut at multiples of this, from the start of the file
_PAUSES = (0.05, 0.25)  # seconds before a file that changed is read again
_TICK_SECONDS = 0.02  # clocks of filesystems go by ticks of the kernel, 1 to 10 ms

Request = Tuple[int, bytes]
# request, size, mtime, ctime, unstable, error, attempt, number of chunks
Finished = Tuple[int, int, int, int, bool, Optional[str], int, int]


def serve(context: Any, body: bytes) -> None:
    """Answer one READ: the files that are asked for meanwhile, until there are no more."""
    codec = context.codec(int(context.start["level"]))
    Reading(context.output, codec, context.walker, context.control.answers).run(_requests(context.control))
    context.output.send(RESULT, *Codec("none", 0).pack(b"{}"))


def _requests(control: Any) -> Iterator[Request]:
    while True:
        kind, body = control.requests.get()
        if kind == REQUESTED:
            return
        if kind != REQUEST:
            raise ValueError("frame kind %d inside a read" % kind)
        for index, path in json.loads(body.decode("ascii")):
            yield index, path.encode("latin-1")


class _Batch:
    def __init__(self) -> None:
        self.rows: List[bytes] = []
        self.contents: List[bytes] = []
        self.held = 0
        self.finished: List[Finished] = []


class Reading:
    """One pass over files that are asked for, in order."""

    def __init__(
        self,
        output: Output,
        codec: Codec,
        walker: Walker,
        answers: "queue.Queue[Tuple[int, bytes]]",
    ) -> None:
        self._output = output
        self._codec = codec
        self._walker = walker
        self._answers = answers
        self._batch = _Batch()
        self._number = 0
        self._ahead = threading.Semaphore(BATCHES_AHEAD)
        self._batches: "queue.Queue[Optional[_Batch]]" = queue.Queue()
        self._broken: Any = None

    def run(self, requests: Iterable[Request]) -> None:
        """Read them all; returns when the last answer was sent."""
        sender = threading.Thread(target=self._send_answers, daemon=True)
        sender.start()
        for index, path in requests:
            finished = self._file(index, path)  # which may close the batch and open another
            self._batch.finished.append(finished)
            if len(self._batch.finished) >= BATCH_NAMES:
                self._ask()
        self._ask()
        self._batches.put(None)
        sender.join()
        if self._broken is not None:
            raise self._broken

    # --- one file ---

    def _file(self, index: int, path: bytes) -> Finished:
        attempts = len(_PAUSES) + 1
        for attempt in range(attempts):
            if attempt:
                time.sleep(_PAUSES[attempt - 1])
            try:
                fd = self._walker.file(path)
            except OSError as error:
                return _failed(index, attempt, _reason(error))
            try:
                before = _settled(fd)
                if not stat.S_ISREG(before.st_mode):
                    return _failed(index, attempt, "replaced")
                count, end = self._content(fd, index, attempt, before.st_size)
                after = os.fstat(fd)
            except OSError as error:
                return _failed(index, attempt, _reason(error))
            finally:
                os.close(fd)
            stable = _state(before) == _state(after)
            if stable or attempt == attempts - 1:
                # A file that shrank has what was read of it.
                size = before.st_size if stable else min(before.st_size, max(after.st_size, end))
                return (index, size, after.st_mtime_ns, after.st_ctime_ns, not stable, None, attempt, count)
        raise AssertionError("the last attempt returns")

    def _content(self, fd: int, index: int, attempt: int, size: int) -> Tuple[int, int]:
        """Hash the data of the file up to `size`; the number of chunks, and where the last one ends."""
        count = end = 0
        for offset, length in _pieces(fd, size):
            raw = os.pread(fd, length, offset)
            while raw and len(raw) < length:
                more = os.pread(fd, length - len(raw), offset + len(raw))
                if not more:
                    break
                raw += more
            if not raw:
                break
            self._add(ASK_ROW.pack(index, attempt, offset, len(raw), hashlib.sha256(raw).digest()), raw)
            count, end = count + 1, offset + len(raw)
            if len(raw) < length:
                break
        return count, end

    # --- batches ---

    def _add(self, row: bytes, raw: bytes) -> None:
        self._batch.rows.append(row)
        self._batch.contents.append(raw)
        self._batch.held += len(raw)
        if self._batch.held >= BATCH_BYTES or len(self._batch.rows) >= BATCH_NAMES:
            self._ask()

    def _ask(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if not batch.rows and not batch.finished:
            return
        self._ahead.acquire()
        if self._broken is not None:
            raise self._broken
        self._output.send(ASK, ASK_HEAD.pack(self._number), *batch.rows)
        self._number += 1
        self._batches.put(batch)

    def _send_answers(self) -> None:
        try:
            number = 0
            while True:
                batch = self._batches.get()
                if batch is None:
                    return
                answered, wanted = self._answers.get()
                if answered != number or len(wanted) != len(batch.rows):
                    raise ValueError("an answer to another question")
                for place, want in enumerate(wanted):
                    if want:
                        self._output.send(DATA, *self._codec.pack(batch.contents[place]))
                    batch.contents[place] = b""
                self._output.send(
                    DONE, ASK_HEAD.pack(number), json.dumps(batch.finished, separators=(",", ":")).encode("ascii")
                )
                number += 1
                self._ahead.release()
        except BaseException as error:  # the reading thread tells of it
            self._broken = error
            self._ahead.release()


def _pieces(fd: int, size: int) -> Iterator[Tuple[int, int]]:
    """Offset and length of what is data, cut at multiples of CHUNK_BYTES; holes are left out."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            stop = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on
                return
            start, stop = at, size  # a filesystem that cannot tell
        while start < stop:
            length = min(stop, (start // CHUNK_BYTES + 1) * CHUNK_BYTES) - start
            yield start, length
            start += length
        at = max(stop, at + 1)


def _settled(fd: int) -> os.stat_result:
    """The file's status, once its last change is so old that a later one gets another time."""
    status = os.fstat(fd)
    age = time.time() - status.st_ctime
    if 0 <= age < _TICK_SECONDS:
        time.sleep(_TICK_SECONDS - age)
        status = os.fstat(fd)
    return status


def _state(status: os.stat_result) -> Tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _failed(index: int, attempt: int, reason: str) -> Finished:
    return (index, 0, 0, 0, False, reason, attempt, 0)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "vanished"
    # A link, a socket, a directory that became a file.
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.ENODEV):
        return "replaced"
    return "unreadable: " + (os.strerror(error.errno) if error.errno else str(error))[:200]

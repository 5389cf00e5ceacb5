"""Reads files: cuts them into chunks, names the chunks by SHA-256, and sends those that the other side lacks.

Four stages overlap: reading (the thread of the request), hashing, packing (a few threads each, for hashlib, zlib and
zstandard let others run), and sending. What is between them goes in batches, of which few are under way at once, so
memory is bounded whatever the server's size.
"""

import errno
import hashlib
import json
import os
import queue
import stat
import threading
import time
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from rehost.agent.output import Output
from rehost.agent.pipeline import Ordered, workers
from rehost.agent.protocol import (
    ASK,
    ASK_HEAD,
    ASK_ROW,
    BATCH_BYTES,
    BATCH_NAMES,
    BATCHES_AHEAD,
    BUNDLE_BYTES,
    DATA,
    DATA_HEAD,
    DONE,
    DONE_HEAD,
    DONE_ROW,
    REQUEST,
    REQUESTED,
    RESULT,
    Codec,
)
from rehost.agent.walk import Walker

CHUNK_BYTES = 1 << 20  # content is cut at multiples of this, from the start of the file
_PAUSES = (0.05, 0.25)  # seconds before a file that changed is read again
_TICK_SECONDS = 0.02  # clocks of filesystems go by ticks of the kernel, 1 to 10 ms
_PACKED_AHEAD = 16  # bundles that are packed or being packed, and not sent yet

Request = Tuple[int, bytes]
# request, size, mtime, ctime, unstable, attempt, number of chunks
Finished = Tuple[int, int, int, int, bool, int, int]


def serve(context: Any, body: bytes) -> None:
    """Answer one READ: the files that are asked for meanwhile, until there are no more."""
    Reading(context).run(_requests(context.control))
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
    """Chunks of files that are asked about together, and the files that are finished with them."""

    def __init__(self) -> None:
        self.places: List[Tuple[int, int, int]] = []  # of each chunk: request, attempt, offset
        self.contents: List[bytes] = []
        self.held = 0
        self.finished: List[Finished] = []
        self.errors: Dict[int, str] = {}  # by the place in `finished`

    def rows(self) -> bytes:
        """The rows of its question; takes the time that hashing takes."""
        sha256, pack = hashlib.sha256, ASK_ROW.pack
        return b"".join(
            [
                pack(index, attempt, offset, len(raw), sha256(raw).digest())
                for (index, attempt, offset), raw in zip(self.places, self.contents)
            ]
        )

    def told(self, number: int) -> bytes:
        """What is said when all of it was sent."""
        rows = b"".join([DONE_ROW.pack(*file) for file in self.finished])
        errors = json.dumps(sorted(self.errors.items()), separators=(",", ":")).encode("ascii")
        return DONE_HEAD.pack(number, len(self.finished)) + rows + errors


class Reading:
    """One pass over files that are asked for, in order."""

    def __init__(self, context: Any) -> None:
        self._output: Output = context.output
        self._walker: Walker = context.walker
        self._answers: "queue.Queue[Tuple[int, bytes]]" = context.control.answers
        self._context = context
        self._room = threading.Semaphore(BATCHES_AHEAD)
        self._batch = _Batch()
        self._asked: "queue.Queue[Optional[_Batch]]" = queue.Queue()
        self._number = 0
        count = workers()
        self._hashing = Ordered(lambda: _hashed, self._ask, count, BATCHES_AHEAD, context.fail)
        self._packing = Ordered(self._packer, self._send, count, _PACKED_AHEAD, context.fail)

    def run(self, requests: Iterable[Request]) -> None:
        """Read them all; returns when the last answer was sent."""
        answering = threading.Thread(target=self._answer, daemon=True)
        answering.start()
        self._room.acquire()
        for index, path in requests:
            finished, error = self._file(index, path)  # which may close the batch and open another
            if error is not None:
                self._batch.errors[len(self._batch.finished)] = error
            self._batch.finished.append(finished)
            if len(self._batch.finished) >= BATCH_NAMES:
                self._close()
        self._close()
        self._hashing.finish()
        self._asked.put(None)
        answering.join()
        self._packing.finish()

    # --- one file ---

    def _file(self, index: int, path: bytes) -> Tuple[Finished, Optional[str]]:
        attempts = len(_PAUSES) + 1
        for attempt in range(attempts):
            if attempt:
                time.sleep(_PAUSES[attempt - 1])
            try:
                fd = self._walker.file(path)
            except OSError as error:
                return _failed(index, attempt), _reason(error)
            try:
                before, settled = _settled(fd)
                if not stat.S_ISREG(before.st_mode):
                    return _failed(index, attempt), "replaced"
                count, end = self._content(fd, index, attempt, before)
                after = os.fstat(fd)
            except OSError as error:
                return _failed(index, attempt), _reason(error)
            finally:
                os.close(fd)
            stable = settled and _state(before) == _state(after)
            if stable or attempt == attempts - 1:
                # A file that shrank has what was read of it.
                size = before.st_size if stable else min(before.st_size, max(after.st_size, end))
                return (index, size, after.st_mtime_ns, after.st_ctime_ns, not stable, attempt, count), None
        raise AssertionError("the last attempt returns")

    def _content(self, fd: int, index: int, attempt: int, status: os.stat_result) -> Tuple[int, int]:
        """Take the data of the file up to its size; the number of chunks, and where the last one ends."""
        count = end = 0
        for offset, length in _pieces(fd, status):
            raw = os.pread(fd, length, offset)
            while raw and len(raw) < length:
                more = os.pread(fd, length - len(raw), offset + len(raw))
                if not more:
                    break
                raw += more
            if not raw:
                break
            self._add((index, attempt, offset), raw)
            count, end = count + 1, offset + len(raw)
            if len(raw) < length:
                break
        return count, end

    # --- batches ---

    def _add(self, place: Tuple[int, int, int], raw: bytes) -> None:
        batch = self._batch
        batch.places.append(place)
        batch.contents.append(raw)
        batch.held += len(raw)
        if batch.held >= BATCH_BYTES or len(batch.places) >= BATCH_NAMES:
            self._close()

    def _close(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if batch.places or batch.finished:
            self._hashing.submit(batch)
            self._room.acquire()

    def _ask(self, hashed: "Tuple[_Batch, bytes]") -> None:
        batch, rows = hashed
        self._output.send(ASK, ASK_HEAD.pack(self._number), rows)
        self._number += 1
        self._asked.put(batch)

    def _answer(self) -> None:
        """Put what is wanted of each batch into bundles."""
        try:
            number = 0
            while True:
                batch = self._asked.get()
                if batch is None:
                    return
                answered, wanted = self._answers.get()
                if answered != number or len(wanted) != len(batch.contents):
                    raise ValueError("an answer to another question")
                self._bundle(batch, wanted)
                self._packing.submit((DONE, batch.told(number)))
                del batch
                number += 1
        except BaseException as error:
            self._context.fail(error)

    def _bundle(self, batch: _Batch, wanted: bytes) -> None:
        bundle: List[bytes] = []
        size = 0
        contents, batch.contents = batch.contents, []
        contents.reverse()
        for want in wanted:
            raw = contents.pop()
            if not want:
                continue
            if bundle and size + len(raw) > BUNDLE_BYTES:
                self._packing.submit((DATA, bundle))
                bundle, size = [], 0
            bundle.append(raw)
            size += len(raw)
        if bundle:
            self._packing.submit((DATA, bundle))

    def _packer(self) -> Any:
        codec = self._context.codec(int(self._context.start["level"]))

        def packed(item: "Tuple[int, Any]") -> "Tuple[int, List[bytes]]":
            kind, content = item
            if kind == DONE:
                return kind, [content]
            raw = content[0] if len(content) == 1 else b"".join(content)
            code, payload = codec.compress(raw)
            return kind, [DATA_HEAD.pack(code, len(content), len(raw)), payload]

        return packed

    def _send(self, packed: "Tuple[int, List[bytes]]") -> None:
        kind, pieces = packed
        self._output.send(kind, *pieces)
        if kind == DONE:
            self._room.release()


def _hashed(batch: _Batch) -> Tuple[_Batch, bytes]:
    return batch, batch.rows()


def _pieces(fd: int, status: os.stat_result) -> Iterable[Tuple[int, int]]:
    """Offset and length of what is data, cut at multiples of CHUNK_BYTES; holes are left out."""
    size = status.st_size
    if 0 < size <= CHUNK_BYTES:
        # As almost all files are: short, and without a hole. The number of blocks would not tell: it counts those of
        # extended attributes too.
        try:
            if os.lseek(fd, 0, os.SEEK_HOLE) >= size:
                return ((0, size),)
        except OSError:  # a filesystem that cannot tell
            pass
    return _pieces_by_holes(fd, size)


def _pieces_by_holes(fd: int, size: int) -> Iterator[Tuple[int, int]]:
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


def _settled(fd: int) -> Tuple[os.stat_result, bool]:
    """The file's status, and whether its last change is so old that a later one gets another time."""
    status = os.fstat(fd)
    age = time.time() - status.st_ctime
    if not 0 <= age < _TICK_SECONDS:
        return status, True
    time.sleep(_TICK_SECONDS - age)
    later = os.fstat(fd)
    return later, later.st_ctime_ns == status.st_ctime_ns


def _state(status: os.stat_result) -> Tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _failed(index: int, attempt: int) -> Finished:
    return (index, 0, 0, 0, False, attempt, 0)


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "vanished"
    # A link, a socket, a directory that became a file.
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.ENODEV):
        return "replaced"
    return "unreadable: " + (os.strerror(error.errno) if error.errno else str(error))[:200]

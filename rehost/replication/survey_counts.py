"""What a walk over a server's names adds up to, batch by batch: sizes, what is left out, and what deserves a look.

The batches are those of Session.scan, sorted by path. What is kept does not grow with the number of files.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.replication.compare import SAME, carried_over, numbers
from rehost.source.exclude import exclude_expression
from rehost.source.inventory import Volume

RECENT_SECONDS = 600
_PARENT_COLUMNS = ["path", "mode", "unstable", *SAME]
_DIRECTORIES_KEPT = 4096
_TOLD = 100
_LARGE_BYTES = 16 << 20
_SPARSE_BYTES = 1 << 30
_SAMPLES = 8
_SAMPLE_BYTES = (256 << 10, 8 << 20)
_SWAP = re.compile(rb"(?:.*/)?(?:swapfile|swap\.img|[^/]+\.swap)", re.DOTALL)
# What programs make again by themselves: the folder, and what it is. A star stands for one name.
CACHES = (
    (b"var/cache", "caches of packages and programs"),
    (b"var/lib/apt/lists", "lists of packages"),
    (b"var/lib/docker", "images and containers of Docker"),
    (b"var/lib/containerd", "images of containerd"),
    (b"var/lib/containers", "images and containers of Podman"),
    (b"var/lib/systemd/coredump", "core dumps"),
    (b"var/crash", "crash dumps"),
    (b"var/log/journal", "the journal"),
    (b"var/tmp", "temporary files"),
    (b"tmp", "temporary files"),
    (b"root/.cache", "caches of a user"),
    (b"home/*/.cache", "caches of users"),
)


@dataclass
class VolumeCount:
    """Of one volume: names, regular files and their bytes, and those of them that would be read."""

    names: int = 0
    files: int = 0
    bytes: float = 0.0
    files_to_read: int = 0
    bytes_to_read: float = 0.0


@dataclass
class Sum:
    """Names and the bytes of their files."""

    names: int = 0
    bytes: float = 0.0


@dataclass
class Counts:
    """The whole, as far as the walk has come. An inode with several names counts a part of its size for each."""

    volumes: Sequence[Volume]
    exclude: Sequence[str]
    parent: Path | None  # the files table of the newest snapshot
    now_ns: int
    of_volume: list[VolumeCount] = field(default_factory=list)
    of_pattern: list[Sum] = field(default_factory=list)
    of_cache: list[Sum] = field(default_factory=list)
    mounts: list[bytes] = field(default_factory=list)
    recent: Counter[bytes] = field(default_factory=Counter)  # files by directory
    recent_total: int = 0
    swap_files: list[tuple[bytes, int]] = field(default_factory=list)
    sparse_files: list[tuple[bytes, int]] = field(default_factory=list)
    samples: list[tuple[bytes, int]] = field(default_factory=list)  # some files of middling size
    reached: bytes | None = None

    def __post_init__(self) -> None:
        self.of_volume = [VolumeCount() for _ in self.volumes]
        self.of_pattern = [Sum() for _ in self.exclude]
        self.of_cache = [Sum() for _ in CACHES]
        self._excluder = _Excluder(self.exclude)
        self._parent = _Parent(self.parent) if self.parent is not None else None
        self._devices: dict[int, int] = {}  # of the root of each volume
        self._used = np.array([volume.used_bytes for volume in self.volumes], np.uint64)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count one batch."""
        if not batch.num_rows:
            return
        paths, volume = batch["path"], numbers(batch, "volume")
        kind = numbers(batch, "mode") & 0o170000
        regular = kind == stat.S_IFREG
        size = np.where(regular, numbers(batch, "size"), 0)
        # More than all files of the volume together take: most of it is a hole, and how much nobody knows.
        hollow = (size >= _SPARSE_BYTES) & (self._used[volume] > 0) & (size > self._used[volume])
        share = np.where(hollow, 0, size) / np.maximum(numbers(batch, "nlink"), 1)
        pattern = self._excluder.patterns(paths, kind == stat.S_IFDIR)
        for number in np.unique(pattern[pattern >= 0]):
            at = pattern == number
            _add(self.of_pattern[number], at, share)
        taken = pattern < 0
        unchanged = self._parent.unchanged(batch) if self._parent is not None else np.zeros(batch.num_rows, bool)
        read = taken & (size > 0) & ~unchanged
        for number in np.unique(volume):
            count, here = self.of_volume[number], taken & (volume == number)
            count.names += int(here.sum())
            count.files += int((here & regular).sum())
            count.bytes += float(share[here].sum())
            count.files_to_read += int((here & read).sum())
            count.bytes_to_read += float(share[here & read].sum())
        self._add_mounts(batch, volume, taken & (kind == stat.S_IFDIR))
        self._add_caches(paths, taken, share)
        self._add_recent(batch, taken & regular)
        self._add_large(paths, taken & (size >= _LARGE_BYTES), hollow, size)
        self._add_sample(paths, read & (size >= _SAMPLE_BYTES[0]) & (size <= _SAMPLE_BYTES[1]), size)
        self.reached = paths[batch.num_rows - 1].as_py()

    def _add_mounts(self, batch: pa.RecordBatch, volume: np.ndarray, directories: np.ndarray) -> None:
        """Directories of another device than their volume's root: something is mounted there that is left out."""
        device = numbers(batch, "dev")
        for number in np.unique(volume):
            rows = np.flatnonzero(volume == number)
            root = self._devices.setdefault(int(number), int(device[rows[0]]))
            others = np.flatnonzero((volume == number) & directories & (device != root))
            room = max(0, _TOLD - len(self.mounts))
            self.mounts += [batch["path"][int(row)].as_py() for row in others[:room]]

    def _add_caches(self, paths: pa.Array, taken: np.ndarray, share: np.ndarray) -> None:
        first, last = paths[0].as_py(), paths[len(paths) - 1].as_py()
        for cache, (folder, _) in zip(self.of_cache, CACHES, strict=True):
            begin, star, _ = folder.partition(b"*")
            begin = begin if star else folder + b"/"
            if last < begin or first > begin + b"\xff":
                continue
            if star:
                expression = "^" + re.escape(folder.decode()).replace(r"\*", "[^/]+") + "/"
                inside = pc.match_substring_regex(paths, expression)
            else:
                inside = pc.starts_with(paths, begin)
            _add(cache, taken & inside.to_numpy(zero_copy_only=False), share)

    def _add_recent(self, batch: pa.RecordBatch, files: np.ndarray) -> None:
        mtime = numbers(batch, "mtime_ns")
        rows = np.flatnonzero(files & (np.abs(mtime - self.now_ns) < RECENT_SECONDS * 10**9))
        self.recent_total += len(rows)
        self.recent.update(path.rpartition(b"/")[0] for path in batch["path"].take(pa.array(rows)).to_pylist())
        if len(self.recent) > _DIRECTORIES_KEPT:
            self.recent = Counter(dict(self.recent.most_common(_DIRECTORIES_KEPT // 2)))

    def _add_large(self, paths: pa.Array, large: np.ndarray, hollow: np.ndarray, size: np.ndarray) -> None:
        for row in np.flatnonzero(large):
            path, length = paths[int(row)].as_py(), int(size[row])
            if _SWAP.fullmatch(path) and len(self.swap_files) < _TOLD:
                self.swap_files.append((path, length))
            elif hollow[row] and len(self.sparse_files) < _TOLD:
                self.sparse_files.append((path, length))

    def _add_sample(self, paths: pa.Array, middling: np.ndarray, size: np.ndarray) -> None:
        rows = np.flatnonzero(middling)
        if len(rows) and len(self.samples) < _SAMPLES:
            row = int(rows[0])
            self.samples.append((paths[row].as_py(), int(size[row])))


class _Excluder:
    """Which pattern leaves a path out. What is below a directory that is left out goes with it."""

    def __init__(self, exclude: Sequence[str]) -> None:
        expressions = [exclude_expression([pattern]) for pattern in exclude]
        self._compiled = [(re.compile(text, re.DOTALL), at) for at, text in enumerate(expressions) if text]
        self._open: list[tuple[bytes, bytes, int]] = []  # beginning and end of what is below a directory; its pattern

    def patterns(self, paths: pa.Array, directories: np.ndarray) -> np.ndarray:
        """For each path the number of the first pattern that leaves it out, -1 for none."""
        found = np.full(len(paths), -1, np.int64)
        if not self._compiled:
            return found
        for row, path in enumerate(paths.to_pylist()):
            self._open = [below for below in self._open if path < below[1]]
            number = next((at for begin, _, at in self._open if path.startswith(begin)), -1)
            if number < 0 and path:
                text = "/" + path.decode("utf-8", "surrogateescape") + ("\0" if directories[row] else "")
                number = next((at for compiled, at in self._compiled if compiled.fullmatch(text)), -1)
                if number >= 0 and directories[row]:
                    self._open.append((path + b"/", path + b"0", number))  # 0 comes after the slash
            found[row] = number
        return found


class _Parent:
    """The files table of a snapshot, read along with the walk: both are sorted by path."""

    def __init__(self, path: Path) -> None:
        self._batches = pq.ParquetFile(path).iter_batches(columns=_PARENT_COLUMNS)
        self._window = pa.table({})
        self._ended = False

    def unchanged(self, batch: pa.RecordBatch) -> np.ndarray:
        """Which rows are regular files that the snapshot has as they are."""
        last = batch["path"][batch.num_rows - 1]
        known = self._up_to(last.as_py())
        if known is None or not known.num_rows:
            return np.zeros(batch.num_rows, bool)
        same = carried_over(batch, known, None) >= 0
        self._window = known.filter(pc.greater(known["path"], last))
        return np.asarray(same)

    def _up_to(self, last: bytes) -> pa.Table | None:
        while not self._ended and (not self._window.num_rows or self._window["path"][-1].as_py() < last):
            batch = next(self._batches, None)
            if batch is None:
                self._ended = True
            else:
                more = pa.Table.from_batches([batch])
                self._window = pa.concat_tables([self._window, more]) if self._window.num_rows else more
        return self._window if self._window.num_columns else None


def _add(total: Sum, rows: np.ndarray, share: np.ndarray) -> None:
    total.names += int(rows.sum())
    total.bytes += float(share[rows].sum())


def largest_caches(counts: Counts, least_bytes: int) -> Iterator[tuple[str, str, int]]:
    """Folder, what it is and bytes of each known cache from that size on, the largest first."""
    found = [(sum_.bytes, folder, what) for sum_, (folder, what) in zip(counts.of_cache, CACHES, strict=True)]
    for size, folder, what in sorted(found, reverse=True):
        if size >= least_bytes:
            yield "/" + folder.decode(), what, round(size)

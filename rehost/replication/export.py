"""Restoring a tree into a folder of this machine: the only way from a manifest to paths on the worker.

The manifest is taken as hostile. Its rules are checked before anything is made, every name is made relative to the
open descriptor of its parent, which was itself reached without following a link, and nothing that is there already is
written to: so nothing outside the folder can be touched, whatever the manifest says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from rehost.errors import ExportFailed
from rehost.replication.manifest import KEPT_FLAGS, Entry, entry_of, validate
from rehost.replication.tree import Tree, printable

_OPEN_DIRECTORIES = 128
_THREADS = 3  # that read, unpack, compare and write files
_BATCHES = 6  # of files that may be under way or wait for a thread
_BATCH_FILES, _BATCH_BYTES, _BATCH_FOLDERS = 64, 2 << 20, 16
_ROWS_AT_ONCE = 4096
_GETFLAGS, _SETFLAGS = 0x8008_6601, 0x4008_6602  # FS_IOC_GETFLAGS and FS_IOC_SETFLAGS of <linux/fs.h>, 64-bit
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_ALLOWED = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL)
_SHOWN = 100  # left-out attributes that the report names


@dataclass(frozen=True)
class ExportReport:
    """What was restored, and what the caller's rights or the filesystem did not allow."""

    entries: int
    bytes_written: int
    left_out: int
    shown: tuple[str, ...]  # the first of those left out: "owner of /etc/shadow"


def export_tree(tree: Tree, directory: Path) -> ExportReport:
    """Restore a tree into an empty, or absent, directory with every attribute that may be set.

    Root restores owners, devices, all extended attributes, ACLs, capabilities and flags; others what they may (a file
    whose owner cannot be given loses its set-id bits). Holes stay holes, times are exact to the nanosecond, the
    change time alone is the restore's own. Raises ManifestInvalid before anything is made, ExportFailed, and what
    reading the chunks raises.
    """
    table = tree.table()
    validate(table)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ExportFailed(path=directory, reason="it is not empty")
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ExportFailed(path=directory, reason=error.strerror or str(error)) from error
    # Nothing that is made in the folder may inherit from it.
    with contextlib.suppress(OSError):
        os.removexattr(top, "system.posix_acl_default")
    export = _Export(tree, top)
    try:
        export.make_all(table)
        # Few rows are looked at twice.
        mode, flags = table["mode"].to_numpy(), table["flags"].to_numpy()
        again = (mode & 0o170000 == stat.S_IFDIR) | (flags & np.uint32(KEPT_FLAGS) != 0)
        for entry in _entries(table.filter(pa.array(again)), backwards=True):
            export.at = entry.path
            export.finish(entry)
    except OSError as error:
        reason = f"/{printable(export.at)}: {error.strerror or error}"
        raise ExportFailed(path=directory, reason=reason) from error
    finally:
        export.directories.close()
    return ExportReport(table.num_rows, export.bytes_written, export.left_out, tuple(export.shown))


def _entries(table: pa.Table, *, backwards: bool = False) -> Iterator[Entry]:
    starts = range(0, table.num_rows, _ROWS_AT_ONCE)
    for start in reversed(starts) if backwards else starts:
        rows = table.slice(start, _ROWS_AT_ONCE).to_pylist()
        for row in reversed(rows) if backwards else rows:
            yield entry_of(row)


class _Directories:
    """Open descriptors of the restored directories, some of them kept; each reached from the top without a link."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._kept: OrderedDict[bytes, int] = OrderedDict()

    def open(self, path: bytes) -> int:
        """The descriptor of the directory of that path: ours to close, and good until many others were asked for."""
        if not path:
            return self._top
        fd = self._kept.get(path)
        if fd is not None:
            self._kept.move_to_end(path)
            return fd
        missing = []
        above = path
        while above and above not in self._kept:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        at = self._kept[above] if above else self._top
        # All on the way are kept, the deepest longest: what comes next is most often nearby.
        for below in reversed(missing):
            at = os.open(below.rpartition(b"/")[2], _DIRECTORY, dir_fd=at)
            self._kept[below] = at
            if len(self._kept) > _OPEN_DIRECTORIES:
                os.close(self._kept.popitem(last=False)[1])
        return at

    def close(self) -> None:
        for fd in [*self._kept.values(), self._top]:
            os.close(fd)
        self._kept.clear()


class _Batch:
    """Files that one thread restores, with descriptors of their own for the directories they are in."""

    def __init__(self) -> None:
        self.files: list[tuple[int, bytes, Entry]] = []  # descriptor of the parent, name, entry
        self.folders: list[int] = []
        self._bytes = 0
        self._parent: int | None = None

    def add(self, parent: int, name: bytes, entry: Entry) -> None:
        """Take one in; `parent` may be closed afterwards."""
        if parent != self._parent:
            self.folders.append(os.dup(parent))
            self._parent = parent
        self.files.append((self.folders[-1], name, entry))
        self._bytes += entry.size

    def folder_changes(self) -> None:
        """The number of a descriptor may mean another directory from now on."""
        self._parent = None

    @property
    def full(self) -> bool:
        """It is enough for one."""
        return len(self.files) >= _BATCH_FILES or self._bytes >= _BATCH_BYTES or len(self.folders) >= _BATCH_FOLDERS

    def close(self) -> None:
        for fd in self.folders:
            os.close(fd)
        self.folders = []


@dataclass
class _Export:
    tree: Tree
    top: int
    directories: _Directories = field(init=False)
    first_names: dict[int, bytes] = field(default_factory=dict)  # of each link group
    links: list[tuple[bytes, Entry]] = field(default_factory=list)  # first name, further name
    at: bytes = b""  # what errors are about
    bytes_written: int = 0
    left_out: int = 0
    shown: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)  # around the three above
    batch: _Batch = field(default_factory=_Batch)
    under_way: deque[Future[None]] = field(default_factory=deque)
    failed_at: bytes | None = None

    def __post_init__(self) -> None:
        self.directories = _Directories(self.top)

    def make_all(self, table: pa.Table) -> None:
        """First pass, parents first: names, contents and attributes of all but directories, which stay ours.

        Files are made by threads, in the order of their paths: so they were stored, and so bundles are unpacked once.
        """
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="restore") as pool:
            try:
                above = None
                for entry in _entries(table):
                    self.at = entry.path
                    if (parent := entry.path.rpartition(b"/")[0]) != above:
                        above = parent
                        self.batch.folder_changes()
                    self.make(entry)
                    if self.batch.full:
                        self._hand_over(pool)
                self._hand_over(pool)
                while self.under_way:
                    self._await_oldest()
            finally:
                for future in self.under_way:
                    future.cancel()
                pool.shutdown()
                self.batch.close()
        # Only now is everything there that has a second name.
        for first, entry in self.links:
            self.at = entry.path
            above, _, name = entry.path.rpartition(b"/")
            self._link(first, self.directories.open(above), name, entry)

    def _hand_over(self, pool: ThreadPoolExecutor) -> None:
        batch, self.batch = self.batch, _Batch()
        future = pool.submit(self._make_files, batch)
        future.add_done_callback(lambda _: batch.close())
        self.under_way.append(future)
        while len(self.under_way) > _BATCHES:
            self._await_oldest()

    def _await_oldest(self) -> None:
        try:
            self.under_way.popleft().result()
        except OSError:
            self.at = self.failed_at or self.at
            raise

    def _make_files(self, batch: _Batch) -> None:
        for parent, name, entry in batch.files:
            if self.failed_at is not None:
                return  # the export is over
            try:
                self._file(parent, name, entry)
            except BaseException:
                self.failed_at = entry.path
                raise

    def make(self, entry: Entry) -> None:
        """One name: files and further names of an inode are put off."""
        if not entry.path:
            return
        above, _, name = entry.path.rpartition(b"/")
        first = entry.path
        if entry.link_group is not None:
            first = self.first_names.setdefault(entry.link_group, entry.path)
        if first != entry.path:
            self.links.append((first, entry))
            return
        parent = self.directories.open(above)
        if entry.is_directory:
            os.mkdir(name, 0o700, dir_fd=parent)
        elif entry.is_file:
            self.batch.add(parent, name, entry)
        elif entry.is_symlink:
            os.symlink(entry.target or b"", name, dir_fd=parent)
            self._attributes(entry, parent, name, f"/proc/self/fd/{parent}/".encode() + name)
        else:
            self._node(parent, name, entry)

    def _link(self, first: bytes, parent: int, name: bytes, entry: Entry) -> None:
        above, _, first_name = first.rpartition(b"/")
        source = self.directories.open(above)
        try:
            os.link(first_name, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            self._leave_out("link", entry)  # to a node that we were not allowed to make

    def _file(self, parent: int, name: bytes, entry: Entry) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        written_now = 0
        try:
            for chunk in entry.chunks:
                view = memoryview(self.tree.read_chunk(chunk.sha256))
                if len(view) != chunk.length:
                    raise OSError(errno.EIO, "a chunk has another length than the manifest says")
                offset = chunk.offset
                while view:
                    written = os.pwrite(fd, view, offset)
                    view, offset = view[written:], offset + written
                written_now += chunk.length
            os.ftruncate(fd, entry.size)
            self._attributes(entry, parent, name, f"/proc/self/fd/{fd}".encode())
        finally:
            os.close(fd)
        with self.lock:
            self.bytes_written += written_now

    def _node(self, parent: int, name: bytes, entry: Entry) -> None:
        try:
            os.mknod(
                name,
                stat.S_IFMT(entry.mode) | 0o600,
                os.makedev(entry.rdev_major, entry.rdev_minor),
                dir_fd=parent,
            )
        except OSError as error:
            if error.errno not in _NOT_ALLOWED:
                raise
            self._leave_out("node", entry)
            return
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            self._attributes(entry, parent, name, f"/proc/self/fd/{fd}".encode())
        finally:
            os.close(fd)

    def finish(self, entry: Entry) -> None:
        """Second pass, deepest first: attributes of directories, then flags, which may forbid all further change."""
        first = entry.link_group is None or self.first_names[entry.link_group] == entry.path
        if entry.is_directory:
            fd = self.directories.open(entry.path)
            self._attributes(entry, fd, b".", f"/proc/self/fd/{fd}".encode())
            self._flags(fd, entry)
        elif entry.flags & KEPT_FLAGS and entry.is_file and first:
            above, _, name = entry.path.rpartition(b"/")
            parent = self.directories.open(above)
            with self._allowed("flags", entry):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
                try:
                    self._flags(fd, entry)
                finally:
                    os.close(fd)

    def _attributes(self, entry: Entry, parent: int, name: bytes, path: bytes) -> None:
        """Owner, extended attributes (chown takes capabilities away, a mode may forbid them), mode, then times.

        `path` leads through an open descriptor to the very inode; for a symbolic link, to its name.
        """
        follow = not entry.is_symlink
        mode = stat.S_IMODE(entry.mode)
        try:
            os.chown(path, entry.uid, entry.gid, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _NOT_ALLOWED:
                raise
            self._leave_out("owner", entry)
            # With another owner than it had, a set-id program would be somebody else's power.
            mode &= ~(0 if entry.is_directory else stat.S_ISUID | stat.S_ISGID)
        for attribute, value in entry.xattrs:
            with self._allowed(f"attribute {printable(attribute)}", entry):
                os.setxattr(path, attribute, value, follow_symlinks=follow)
        if follow:
            os.chmod(path, mode)  # noqa: PTH101 (bytes)
            os.utime(path, ns=(entry.atime_ns, entry.mtime_ns))
        else:
            os.utime(name, ns=(entry.atime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _flags(self, fd: int, entry: Entry) -> None:
        wanted = entry.flags & KEPT_FLAGS
        if not wanted:
            return
        with self._allowed("flags", entry):
            present = struct.unpack("=I", fcntl.ioctl(fd, _GETFLAGS, bytes(8))[:4])[0]
            fcntl.ioctl(fd, _SETFLAGS, struct.pack("=II", present | wanted, 0))

    @contextlib.contextmanager
    def _allowed(self, what: str, entry: Entry) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _NOT_ALLOWED:
                raise
            self._leave_out(what, entry)

    def _leave_out(self, what: str, entry: Entry) -> None:
        with self.lock:
            self.left_out += 1
            if len(self.shown) < _SHOWN:
                self.shown.append(f"{what} of /{printable(entry.path)}")

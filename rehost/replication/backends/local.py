"""A folder of this machine as the place of a store. Packs are made where they stay."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from rehost.replication.backends.leases import FileLease, Lease, living_files
from rehost.replication.packs import OpenFile, fsync_folder, publish

_FOLDERS = ("packs", "indexes", "snapshots", "condemned", "leases")
_OPEN_FILES = 64  # packs kept open for reading


class LocalFolder:
    """A Backend."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._lock = threading.Lock()  # around _open

    @property
    def shown(self) -> str:
        return str(self._folder)

    @property
    def spool(self) -> Path:
        return self._folder

    def prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not self.is_foreign():
            for folder in _FOLDERS:
                (self._folder / folder).mkdir(mode=0o700, exist_ok=True)

    def is_foreign(self) -> bool:
        return any(p.name not in _FOLDERS and not p.name.startswith(".config") for p in self._folder.iterdir())

    def list(self, folder: str) -> dict[str, int]:
        return {name: status.st_size for name, status in self._walk(folder)}

    def ages(self, folder: str) -> dict[str, float]:
        now = time.time()
        return {name: now - status.st_mtime for name, status in self._walk(folder)}

    def _walk(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        top = self._folder / folder
        for where, _, names in os.walk(top):
            inner = os.path.relpath(where, top)
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                    status = os.lstat(os.path.join(where, name))  # noqa: PTH118 (of a million names)
                    yield name if inner == "." else f"{inner}/{name}", status

    def lease(self, kind: str) -> Lease:
        return FileLease(self._folder / "leases", kind)

    def leases(self) -> set[str]:
        return living_files(self._folder / "leases")

    def size(self, name: str) -> int | None:
        try:
            return (self._folder / name).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is None:
            return (self._folder / name).read_bytes()[offset:]
        file = self._file(name)  # held until it was read: another thread may let the last of many go meanwhile
        return os.pread(file.fd, length, offset)

    def _file(self, name: str) -> OpenFile:
        with self._lock:
            file = self._open.get(name)
            if file is None:
                file = self._open[name] = OpenFile(os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC))
                if len(self._open) > _OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(name)
            return file

    def fetch(self, name: str) -> Path:
        path = self._folder / name
        path.stat()
        return path

    def write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        # Several processes may make the file at the top at once; of those in folders each has one writer.
        temporary = path.with_suffix(".tmp") if "/" in name else path.with_name(f".{path.stem}-{os.getpid()}")
        publish(path, data, temporary)

    def adopt(self, path: Path, name: str) -> None:
        target = self._folder / name
        if path.exists() or not target.exists():  # else an earlier try came that far
            path.rename(target)
        fsync_folder(target.parent)

    def put_aside(self, name: str) -> None:
        path = self._folder / name
        with contextlib.suppress(FileNotFoundError):
            path.rename(path.with_suffix(".damaged"))

    def delete(self, name: str) -> None:
        path = self._folder / name
        path.unlink(missing_ok=True)
        fsync_folder(path.parent)
        with self._lock:
            self._open.pop(name, None)

    def publish_folder(self, folder: Path, name: str, last: str) -> None:
        target = self._folder / name
        if target.exists():
            raise FileExistsError(name)
        folder.rename(target)
        fsync_folder(target.parent)

    def delete_folder(self, name: str, first: str) -> None:
        path = self._folder / name
        gone = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        path.rename(gone)
        fsync_folder(gone.parent)
        shutil.rmtree(gone, ignore_errors=True)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

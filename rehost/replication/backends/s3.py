"""A bucket of an S3-compatible object store as the place of a store, through Arrow's filesystem for it.

Packs and snapshots are made in a spool folder of this machine, sent when they are whole, and removed from it only when
the store can be read without it. Indexes and tables that were fetched stay in the spool: no object is ever changed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import threading
from collections import OrderedDict
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from rehost.replication.backends.leases import LEASE_SECONDS, Lease, RenewedLease, lease_name
from rehost.replication.backends.location import Bucket

_CONNECT_SECONDS, _REQUEST_SECONDS = 10, 60
_ATTEMPTS = 6
_OPEN_FILES = 64  # packs whose length is known, so that a read is one request
_FETCH_BYTES = 8 << 20


class ObjectStore:
    """A Backend. Credentials are those of the AWS environment variables and files, or of the machine it runs on."""

    def __init__(self, bucket: Bucket, spool: Path) -> None:
        self._top = "/".join(part for part in (bucket.name, bucket.prefix) if part)
        self._spool = spool
        scheme, _, host = (bucket.endpoint or "").partition("://")
        self._files = fs.S3FileSystem(
            endpoint_override=host or None,
            scheme=scheme or None,
            region=bucket.region or ("us-east-1" if host else None),
            connect_timeout=_CONNECT_SECONDS,
            request_timeout=_REQUEST_SECONDS,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        )
        self._open: OrderedDict[str, pa.NativeFile] = OrderedDict()
        self._lock = threading.Lock()  # around _open

    @property
    def shown(self) -> str:
        return f"s3://{self._top}"

    @property
    def spool(self) -> Path:
        return self._spool

    def prepare(self) -> None:
        for folder in ("packs", "snapshots", "fetched"):
            (self._spool / folder).mkdir(mode=0o700, parents=True, exist_ok=True)

    def is_foreign(self) -> bool:
        return bool(self.list(""))

    def list(self, folder: str) -> dict[str, int]:
        return {name: info.size for name, info in self._infos(folder).items()}

    def _infos(self, folder: str) -> dict[str, fs.FileInfo]:
        top = f"{self._top}/{folder}".rstrip("/")
        found = self._files.get_file_info(fs.FileSelector(top, recursive=True, allow_not_found=True))
        return {info.path[len(top) + 1 :]: info for info in found if info.type == fs.FileType.File}

    def ages(self, folder: str) -> dict[str, float]:
        infos = self._infos(folder)
        probe = f"leases/{lease_name('clock')}"
        self.write(probe, b"")
        now = self._files.get_file_info(f"{self._top}/{probe}").mtime_ns
        self.delete(probe)
        return {name: (now - info.mtime_ns) / 1e9 for name, info in infos.items()}

    def lease(self, kind: str) -> Lease:
        name = lease_name(kind)
        path = f"leases/{name}"
        return RenewedLease(name, lambda: self.write(path, b""), lambda: self.delete(path))

    def leases(self) -> set[str]:
        alive = set()
        for name, age in self.ages("leases").items():
            if age > LEASE_SECONDS:
                self.delete(f"leases/{name}")
            elif not name.startswith("clock-"):
                alive.add(name)
        return alive

    def size(self, name: str) -> int | None:
        info = self._files.get_file_info(f"{self._top}/{name}")
        return info.size if info.type == fs.FileType.File else None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is None:  # small objects, some of which change: as they are now
            with self._files.open_input_stream(f"{self._top}/{name}") as stream:
                whole: bytes = stream.read()
            return whole[offset:]
        data: bytes = self._file(name).read_at(length, offset)
        return data

    def _file(self, name: str) -> pa.NativeFile:
        with self._lock:
            file = self._open.get(name)
            if file is not None:
                self._open.move_to_end(name)
                return file
        file = self._files.open_input_file(f"{self._top}/{name}")
        with self._lock:
            self._open[name] = file
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        return file

    def fetch(self, name: str) -> Path:
        path = self._spool / "fetched" / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
            try:
                with self._files.open_input_stream(f"{self._top}/{name}") as source, temporary.open("xb") as target:
                    shutil.copyfileobj(source, target, _FETCH_BYTES)
                temporary.rename(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return path

    def write(self, name: str, data: bytes) -> None:
        # All in one call: a stream that is left by an exception between two calls would publish what it has.
        stream = self._files.open_output_stream(f"{self._top}/{name}")
        stream.write(data)
        stream.close()
        if self.size(name) != len(data):
            raise OSError(f"{name} did not arrive whole")

    def adopt(self, path: Path, name: str) -> None:
        self.write(name, path.read_bytes())

    def put_aside(self, name: str) -> None:
        (self._spool / "fetched" / name).unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(f"{self._top}/{name}")
        with self._lock:
            self._open.pop(name, None)
        self.put_aside(name)

    def publish_folder(self, folder: Path, name: str, last: str) -> None:
        if self.size(f"{name}/{last}") is not None:
            raise FileExistsError(name)
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
            self._send(path, f"{name}/{path.name}")
        shutil.rmtree(folder, ignore_errors=True)

    def _send(self, path: Path, name: str) -> None:
        """As `adopt`, for a file of any size: it is mapped into memory, not read."""
        if not path.stat().st_size:
            self.write(name, b"")
            return
        with pa.memory_map(os.fspath(path)) as mapped:
            self.write(name, mapped.read_buffer())

    def delete_folder(self, name: str, first: str) -> None:
        if self.size(f"{name}/{first}") is None:
            raise FileNotFoundError(name)
        self.delete(f"{name}/{first}")
        for other in self.list(name):
            self.delete(f"{name}/{other}")
        shutil.rmtree(self._spool / "fetched" / name, ignore_errors=True)

    def close(self) -> None:
        with self._lock:
            self._open.clear()

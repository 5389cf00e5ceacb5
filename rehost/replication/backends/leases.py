"""Leases: files that tell that their maker is alive.

In a folder a lease is a file with a lock (flock) that goes with its process. In a bucket it is an object that is
written anew every minute, and holds while it is younger than ten by the bucket's own clock. Who could not renew it in
time, as a machine that slept, has lost it and knows so before anybody else may think it dead.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rehost.replication.packs import OpenFile, lock

log = logging.getLogger(__name__)

LEASE_SECONDS = 600.0  # without a renewal a lease of a bucket is dead after so long
_RENEW_SECONDS = 60.0
_LOST_SECONDS = LEASE_SECONDS / 2  # its holder gives it up before


class Lease(Protocol):
    """Says that its holder is alive, until `release`."""

    @property
    def name(self) -> str:
        """Letters, digits and dashes; no other lease ever has it."""
        ...

    def holds(self) -> bool:
        """Whether nobody can have thought it dead."""
        ...

    def release(self) -> None:
        """End it. Never fails: a lease that cannot be taken away dies by itself."""
        ...


def lease_name(kind: str) -> str:
    """A name that nobody else has."""
    return f"{kind}-{secrets.token_hex(16)}"


class FileLease:
    """A lease in a folder of this machine."""

    def __init__(self, folder: Path, kind: str) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        while True:
            self.name = lease_name(kind)
            self._path = folder / self.name
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file: OpenFile | None = OpenFile(os.open(self._path, flags, 0o600))
            # Between the two calls somebody may have taken the file for a dead one's, and removed it.
            if lock(self._file.fd) and self._path.exists():
                return

    def holds(self) -> bool:
        return self._file is not None

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._file = None


def living_files(folder: Path) -> set[str]:
    """The leases of a folder whose holders live; those of dead ones are removed."""
    alive = set()
    for path in folder.iterdir() if folder.exists() else ():
        try:
            file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
        except FileNotFoundError:
            continue
        if lock(file.fd):
            path.unlink(missing_ok=True)
        else:
            alive.add(path.name)
    return alive


class RenewedLease:
    """A lease that `write` renews, in a thread of its own, and `delete` ends."""

    def __init__(self, name: str, write: Callable[[], None], delete: Callable[[], None]) -> None:
        self.name = name
        self._write, self._delete = write, delete
        self._ended = threading.Event()
        self._renewed = _seconds()
        write()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        while not self._ended.wait(_RENEW_SECONDS) and self.holds():
            began = _seconds()
            try:
                self._write()
                self._renewed = began
            except OSError as error:
                log.warning("the lease %s could not be renewed: %s", self.name, error)

    def holds(self) -> bool:
        return not self._ended.is_set() and _seconds() - self._renewed < _LOST_SECONDS

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._delete()


def _seconds() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # goes on while the machine sleeps

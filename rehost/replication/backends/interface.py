"""What the store asks of the place where its files are.

Files have names of letters, digits, dots and dashes with slashes between them. One appears whole and durable or not at
all, is never changed afterwards, and is the same for every machine that uses the store.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from rehost.replication.backends.leases import Lease


class Backend(Protocol):
    """Files by name. Safe for threads. All methods raise OSError, and FileNotFoundError where a file is not there."""

    @property
    def shown(self) -> str:
        """What errors call the place."""
        ...

    @property
    def spool(self) -> Path:
        """A folder of this machine, with `packs` and `snapshots` in it, where files are made before they are here."""
        ...

    def prepare(self) -> None:
        """Make ready what the other methods need."""
        ...

    def is_foreign(self) -> bool:
        """Whether there is something that no store made; asked where there is no store yet."""
        ...

    def list(self, folder: str) -> dict[str, int]:
        """The files below a folder, by their names from there, with their sizes in bytes."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there."""
        ...

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file from a place on; fewer than asked for where it ends."""
        ...

    def fetch(self, name: str) -> Path:
        """A file of this machine with the bytes of that one, to be read only. It stays for later."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Make a file, durably."""
        ...

    def adopt(self, path: Path, name: str) -> None:
        """Make a file of one in the spool that is durable there. The one in the spool may be gone afterwards."""
        ...

    def put_aside(self, name: str) -> None:
        """A file turned out to be damaged: see to it that it is not read again as it is."""
        ...

    def delete(self, name: str) -> None:
        """Take a file away, if it is there."""
        ...

    def publish_folder(self, folder: Path, name: str, last: str) -> None:
        """Make a folder of files of one in the spool; the file `last` appears with or after all others.

        Raises FileExistsError where `last` is there already. The folder in the spool is gone afterwards.
        """
        ...

    def delete_folder(self, name: str, first: str) -> None:
        """Take a folder of files away; the file `first` goes with or before all others."""
        ...

    def ages(self, folder: str) -> dict[str, float]:
        """As `list`, with the seconds since each file was made, by the clock of the place."""
        ...

    def lease(self, kind: str) -> Lease:
        """Tell all others that somebody is alive here. The lease's name begins with its kind and a dash."""
        ...

    def leases(self) -> set[str]:
        """The names of all leases whose holders live. What dead ones left is removed."""
        ...

    def close(self) -> None:
        """Let go what is open."""
        ...

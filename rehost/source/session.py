"""The face that every source has towards the rest of Rehost, whatever kind of connection is behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyarrow as pa

from rehost.replication.bundles import Bundle
from rehost.replication.manifest import Chunk
from rehost.source.inventory import Inventory, Volume


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A regular file whose content is asked for."""

    index: int  # opaque to the session; the caller's row number. No two requests of one read have the same
    path: bytes  # relative to the source's root, as in the manifest
    size: int  # bytes, as the scan saw it; the file may have another size by now


@dataclass(frozen=True, slots=True)
class FileContent:
    """What a regular file holds.

    `size`, `mtime_ns` and `ctime_ns` are those of the reading that the chunks come from, not those of the scan.
    Where `error` is set there is no content and the other fields say nothing. It is one of `vanished` (no such
    name any more), `replaced` (the name is no regular file any more) and `unreadable: REASON`.
    """

    index: int
    size: int
    mtime_ns: int
    ctime_ns: int
    chunks: tuple[Chunk, ...]
    unstable: bool  # the file kept changing while it was read; the chunks are of the last reading
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that the scan saw and could not take."""

    path: bytes
    reason: str


class Session(Protocol):
    """An open connection to a source. One thing is asked at a time; only the bandwidth limit may be set meanwhile."""

    host: str  # for messages

    def bytes_on_wire(self) -> int:
        """All bytes received from the source so far."""
        ...

    def inventory(self) -> Inventory:
        """What the server is. Raises SourceProtocol, SourceUnsupported."""
        ...

    def scan(self, volumes: Sequence[Volume], exclude: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Every name on these volumes, as batches of SCAN_SCHEMA rows, sorted by path as bytes, none twice.

        `exclude` holds the patterns of docs/wire.md.
        """
        ...

    def read(
        self,
        requests: Iterable[FileRequest],
        wanted: Callable[[Sequence[bytes]], Sequence[bool]],
        deliver: Callable[[Bundle], None],
    ) -> Iterator[FileContent]:
        """The content of these files, in the order of the requests.

        SHA-256 names are put to `wanted` in batches. Each wanted chunk is given once to `deliver`, in a bundle, before
        the FileContent that names it is yielded. A bundle's content has been compared with nothing: the store does.
        """
        ...

    def set_bandwidth_limit(self, kbps: int) -> None:
        """Bound what the source sends, in KB/s (1 KB = 1,000 bytes); 0 for no bound. Acts within a second."""
        ...


@runtime_checkable
class ReportsSkipped(Protocol):
    """A session that remembers what its last scan could not take."""

    def skipped(self) -> Sequence[Skipped]:
        """What the last scan could not take, with a bound on how many are told."""
        ...


@runtime_checkable
class TellsNotes(Protocol):
    """A session that has something to say to people of how it went."""

    def notes(self) -> Sequence[str]:
        """Sentences, each once."""
        ...


@runtime_checkable
class TellsTime(Protocol):
    """A session whose source has a clock that its files' times come from."""

    def scan_began_ns(self) -> int | None:
        """When the last scan began, by that clock, in ns since 1970; None where it was not told."""
        ...

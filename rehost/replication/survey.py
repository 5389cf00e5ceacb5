"""A walk over a source before anything is copied: what would travel, what is left out, and what deserves a look.

Nothing is stored. A walk that takes longer than it may ends where it is, and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from rehost.replication.survey_counts import RECENT_SECONDS, Counts, largest_caches
from rehost.replication.tree import printable
from rehost.source.inventory import Inventory, Record
from rehost.source.session import FileRequest, ReportsSkipped, Session, Skipped

ASSUMED_BYTES_PER_SECOND = 50_000_000  # of content, where nothing could be measured
CACHE_BYTES = 100_000_000  # a cache from here on is told of
_TOLD = 20
_SENTENCES = 3  # of one kind
_SAMPLE_SECONDS = 5.0
_SAMPLE_LEAST_BYTES = 1 << 20


class SurveyedVolume(Record):
    """A filesystem by what was found on it. Sizes in bytes; an inode with several names counts once."""

    mount_point: str
    names: int
    files: int
    bytes: int
    files_to_read: int  # that are new or changed since the newest snapshot, all where there is none
    bytes_to_read: int


class LeftOut(Record):
    """Something that does not travel."""

    kind: Literal["pattern", "mount", "unreadable"]
    what: str
    names: int | None = None  # None: nobody looked
    bytes: int | None = None
    reason: str | None = None


class Remarkable(Record):
    """Something whose copy may be of little use."""

    kind: Literal["cache", "swap", "sparse"]
    path: str
    bytes: int
    what: str


class BusyDirectory(Record):
    """A directory with files that changed within the last ten minutes."""

    path: str
    files: int


class Survey(Record):
    """What a walk over the source found."""

    complete: bool
    reached: str | None  # where it ended, of one that is not complete
    seconds: float
    parent_id: str | None  # the snapshot that was compared with
    volumes: tuple[SurveyedVolume, ...]
    files_to_read: int
    bytes_to_read: int
    left_out: tuple[LeftOut, ...]
    remarkable: tuple[Remarkable, ...]
    changing_files: int  # that changed within the last ten minutes
    busy_directories: tuple[BusyDirectory, ...]
    bytes_per_second: int  # of content, without a limit
    rate: Literal["measured", "assumed"]


def survey(
    session: Session,
    inventory: Inventory,
    exclude: Sequence[str],
    *,
    parent: tuple[str, Path] | None,
    seconds: float,
    measure: bool,
) -> Survey:
    """Walk the inventory's volumes for so many seconds at most, and compare with a snapshot's files table (id, path).

    With `measure` some files are read, for five seconds at most, to see how fast that is. A session whose walk was
    cut short can serve for nothing else. Raises what the session raises.
    """
    begun = time.monotonic()
    counts = Counts(inventory.volumes, exclude, parent[1] if parent else None, time.time_ns())
    complete = True
    for batch in session.scan(inventory.volumes, ()):
        counts.add(batch)
        if time.monotonic() - begun > seconds:
            complete = False
            break
    walked = time.monotonic() - begun
    measured = _measured(session, counts.samples) if measure and complete else None
    volumes = tuple(
        SurveyedVolume(
            mount_point=volume.mount_point,
            names=count.names,
            files=count.files,
            bytes=_bounded(count.bytes, volume.used_bytes),
            files_to_read=count.files_to_read,
            bytes_to_read=_bounded(count.bytes_to_read, volume.used_bytes),
        )
        for volume, count in zip(inventory.volumes, counts.of_volume, strict=True)
    )
    return Survey(
        complete=complete,
        reached=None if complete or counts.reached is None else _shown(counts.reached),
        seconds=round(walked, 1),
        parent_id=parent[0] if parent else None,
        volumes=volumes,
        files_to_read=sum(volume.files_to_read for volume in volumes),
        bytes_to_read=sum(volume.bytes_to_read for volume in volumes),
        left_out=tuple(_left_out(counts, session if complete else None)),
        remarkable=tuple(_remarkable(counts)),
        changing_files=counts.recent_total,
        busy_directories=tuple(
            BusyDirectory(path=_shown(path), files=files) for path, files in counts.recent.most_common(_TOLD)
        ),
        bytes_per_second=measured or ASSUMED_BYTES_PER_SECOND,
        rate="measured" if measured else "assumed",
    )


def warnings_of(found: Survey) -> Iterator[str]:
    """Sentences on what a user should look at before the copy."""
    if not found.complete:
        yield f"The walk ended after {found.seconds:.0f} seconds at {found.reached}; the figures are of what it saw."
    hollow = [item for item in found.remarkable if item.kind == "sparse"]
    if len(hollow) > _SENTENCES:
        yield f"{len(hollow)} files say that they have more than their filesystems hold; only what is no hole travels."
    for item in found.remarkable:
        if item.kind == "sparse" and len(hollow) > _SENTENCES:
            continue
        size = f"{item.bytes / 1e6:,.0f} MB"
        if item.kind == "cache":
            yield f"{item.path} holds {size} of {item.what}; `exclude` leaves it out."
        elif item.kind == "swap":
            yield f"{item.path} is a swap file of {size}; its content is of no use, `exclude` leaves it out."
        else:
            yield f"{item.path} says that it has {size}, more than its filesystem holds; only what is no hole travels."
    if found.changing_files:
        most = f", most of them in {found.busy_directories[0].path}" if found.busy_directories else ""
        minutes = RECENT_SECONDS // 60
        yield f"Files that changed within the last {minutes} minutes: {found.changing_files:,}{most}."


def _left_out(counts: Counts, session: Session | None) -> Iterator[LeftOut]:
    for pattern, total in zip(counts.exclude, counts.of_pattern, strict=True):
        yield LeftOut(kind="pattern", what=pattern, names=total.names, bytes=round(total.bytes))
    for path in counts.mounts:
        yield LeftOut(kind="mount", what=_shown(path), reason="another filesystem, or a pseudo filesystem")
    skipped: Sequence[Skipped] = session.skipped() if isinstance(session, ReportsSkipped) else ()
    for item in skipped:
        yield LeftOut(kind="unreadable", what=_shown(item.path), reason=item.reason)


def _remarkable(counts: Counts) -> Iterator[Remarkable]:
    for path, what, size in largest_caches(counts, CACHE_BYTES):
        yield Remarkable(kind="cache", path=path, bytes=size, what=what)
    for name, length in counts.swap_files[:_TOLD]:
        yield Remarkable(kind="swap", path=_shown(name), bytes=length, what="a swap file")
    for name, length in counts.sparse_files[:_TOLD]:
        yield Remarkable(kind="sparse", path=_shown(name), bytes=length, what="mostly holes")


def _measured(session: Session, samples: Sequence[tuple[bytes, int]]) -> int | None:
    """Bytes of content a second, from reading some files; None where there is too little to read."""
    requests = [FileRequest(number, path, size) for number, (path, size) in enumerate(samples)]
    if sum(request.size for request in requests) < _SAMPLE_LEAST_BYTES:
        return None
    arrived = 0
    begun = time.monotonic()
    for content in session.read(requests, lambda names: [True] * len(names), lambda bundle: None):
        arrived += sum(chunk.length for chunk in content.chunks)
        if time.monotonic() - begun > _SAMPLE_SECONDS:
            break
    return max(1, int(arrived / max(time.monotonic() - begun, 1e-3))) if arrived else None


def _bounded(counted: float, used_bytes: int) -> int:
    """What files have, with holes, is never more than what their filesystem holds; that is 0 where nobody knows."""
    return min(round(counted), used_bytes) if used_bytes else round(counted)


def _shown(path: bytes) -> str:
    return f"/{printable(path)}"

"""`rehost image export`: the files of an image from the API into a folder, each compared with its checksum.

What was interrupted goes on where it was: what has arrived of a file lies beside its place as `NAME.part`. image.json
comes last, so a folder that has it holds the whole image.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from rehost.cli.client import Client, Json
from rehost.disk_formats import ending_of
from rehost.errors import DownloadDamaged, DownloadNotWritten

_PIECE_BYTES = 1 << 20
_BLOB = "blobs/sha256/"

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Wanted:
    """One file of the image."""

    name: str  # in the folder
    address: str  # at the API
    size: int | None  # bytes; None: the API tells
    sha256: str | None  # None: it is an archive that has the digests of its parts in it


def files_of(image: Json) -> list[Wanted]:
    """What is exported of the image, as the API shows it. No name in it comes from the source."""
    if image["kind"] == "container":
        return [Wanted("image.tar", f"/v1/images/{image['id']}/archive", None, None)]
    return [
        Wanted(
            f"disk-{int(disk['index'])}.{ending_of(_plain(disk['format']))}",
            f"/v1/images/{image['id']}/disks/{int(disk['index'])}?format={_plain(disk['format'])}",
            int(disk["file_size"]),
            str(disk["sha256"]),
        )
        for disk in image["disks"]
    ]


def _plain(format: object) -> str:
    text = str(format)
    if not re.fullmatch(r"[A-Za-z0-9-]{1,32}", text):
        raise DownloadNotWritten(path=text, reason="the API names a format that is none")
    return text


def export(client: Client, image: Json, folder: Path) -> list[Path]:
    """Bring the files of the image into the folder; their paths.

    A file that is there already with its checksum is left as it is. Raises ApiUnreachable, Refused, DownloadDamaged
    where a file has another checksum than the image says, and DownloadNotWritten where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # an image holds the server's secrets
        with _bar() as bar:
            paths = [_brought(client, wanted, folder, bar) for wanted in files_of(image)]
        _write(folder / "image.json", json.dumps(image, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise DownloadNotWritten(path=folder, reason=error.strerror or str(error)) from error
    return [*paths, folder / "image.json"]


def _brought(client: Client, wanted: Wanted, folder: Path, bar: Progress) -> Path:
    path, part = folder / wanted.name, folder / f"{wanted.name}.part"
    task = bar.add_task(wanted.name, total=wanted.size)
    if path.exists() and wanted.sha256 is not None and _sha256(path, lambda _: None) == wanted.sha256:
        bar.update(task, completed=path.stat().st_size)
        return path
    with part.open("ab") as file:
        os.fchmod(file.fileno(), 0o600)
        digest = hashlib.sha256()
        _sha256(part, lambda count: bar.advance(task, count), digest)
        with client.download(wanted.address, file.tell()) as download:
            if download.first == 0 and file.tell():
                file.truncate(0)  # the file is another one than the one that had begun to arrive
                digest = hashlib.sha256()
            bar.update(task, total=download.size, completed=download.first)
            for piece in download.pieces:
                file.write(piece)
                digest.update(piece)
                bar.advance(task, len(piece))
        file.flush()
        os.fsync(file.fileno())
    found = digest.hexdigest() if wanted.sha256 is not None else _damage(part)
    if found != wanted.sha256:
        part.unlink()
        raise DownloadDamaged(name=wanted.name, found=found, wanted=wanted.sha256 or "what its parts are named")
    part.replace(path)
    return path


def _sha256(path: Path, advance: Advance, digest: Any = None) -> str:
    digest = digest or hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            advance(len(piece))
    return str(digest.hexdigest())


def _damage(path: Path) -> str | None:
    """What is wrong with an archive whose parts are named by their digests (OCI image layout); None: nothing."""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.name.startswith(_BLOB):
                    continue
                content = archive.extractfile(member)
                digest = hashlib.sha256()
                while content is not None and (piece := content.read(_PIECE_BYTES)):
                    digest.update(piece)
                if digest.hexdigest() != member.name.removeprefix(_BLOB):
                    return digest.hexdigest()
    except tarfile.TarError as error:
        return str(error)
    return None


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@contextlib.contextmanager
def _bar() -> Iterator[Progress]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(file=sys.stderr), disable=not sys.stderr.isatty()
    ) as bar:
        yield bar

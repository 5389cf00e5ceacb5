"""Wheels of xxhash and zstandard for the Pythons of sources: fetched once by pip, kept, and compared by SHA-256.

A folder holds a folder for each kind of Python (`cp311-manylinux_2_35_x86_64`) with a record for each package,
`xxhash.json`, and the wheel that it names. See docs/formats.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from rehost import run
from rehost.errors import ProgramFailed, ProgramNotFound, ProgramTimeout
from rehost.source.interpreters import Target
from rehost.source.shared_objects import trimmed

FETCH_SECONDS = 60.0
FAILURE_KEPT = timedelta(days=1)
_NEW = ".new-"  # begins the names of what is not complete
_WHEEL_BYTES = 64 << 20  # of a wheel, and of a file in it
_VERSIONS = {"xxhash": SpecifierSet(">=3.0,<5"), "zstandard": SpecifierSet(">=0.18,<1")}
# What is needed of each: modules in Python, and the one of compiled code; zstandard has a second one, for CFFI.
_MODULES = {"xxhash": ("__init__.py", "version.py"), "zstandard": ("__init__.py",)}
_COMPILED = {"xxhash": "_xxhash", "zstandard": "backend_c"}
_PIP = ("--only-binary=:all:", "--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar=off")
_PIP_PATIENCE = ("--quiet", "--retries=1", "--timeout=15")
_PIP_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "ssl_cert_file", "ssl_cert_dir", "netrc")


class NoWheel(Exception):
    """There is no such wheel to be had; the text says why."""


class _Kept(BaseModel):
    """The record of one package for one kind of Python: a wheel, or why there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str | None = None
    sha256: str | None = None
    reason: str | None = None
    fetched_at: AwareDatetime


class WheelFolder:
    """Wheels that are kept in one folder, by processes that may do so at the same time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def files(self, package: str, target: Target) -> dict[str, bytes]:
        """The modules of a package by their names, for that kind of Python.

        Looks in the folder, then asks pip, for a minute at most; that it failed is remembered for a day. Raises
        NoWheel.
        """
        try:
            return contents(self._wheel(package, target), package, target)
        except OSError as error:
            raise NoWheel(f"{self._folder}: {error.strerror or error}") from error

    def _wheel(self, package: str, target: Target) -> bytes:
        folder = self._folder / target.key
        kept = _record(folder, package)
        if kept is not None and kept.file is not None:
            with contextlib.suppress(FileNotFoundError):
                content = _bounded(folder / kept.file)
                if hashlib.sha256(content).hexdigest() == kept.sha256:
                    return content
        if kept is not None and kept.reason is not None and datetime.now(UTC) - kept.fetched_at < FAILURE_KEPT:
            raise NoWheel(kept.reason)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(folder)
        try:
            name, content = _fetched(package, target, folder)
            digest = hashlib.sha256(content).hexdigest()
            if kept is not None and kept.file == name and kept.sha256 != digest:
                raise NoWheel(f"{name} has another SHA-256 than when it was first fetched")
        except NoWheel as error:
            # What was fetched before stays named: its SHA-256 is the one to compare with.
            if kept is None or kept.file is None:
                _write(folder / f"{package}.json", _told(_Kept(reason=str(error), fetched_at=datetime.now(UTC))))
            raise
        _write(folder / name, content)
        _write(folder / f"{package}.json", _told(_Kept(file=name, sha256=digest, fetched_at=datetime.now(UTC))))
        return content


def contents(wheel: bytes, package: str, target: Target) -> dict[str, bytes]:
    """What is needed of a wheel, the compiled code trimmed. Raises NoWheel for a wheel that does not have it."""
    files: dict[str, bytes] = {}
    with tempfile.TemporaryFile() as file:
        file.write(wheel)
        try:
            with zipfile.ZipFile(file) as archive:
                for name in _MODULES[package]:
                    files[name] = _member(archive, f"{package}/{name}")
                there = set(archive.namelist())
                for suffix in (target.suffix, ".abi3.so"):
                    name = _COMPILED[package] + suffix
                    if f"{package}/{name}" in there:
                        files[name] = trimmed(_member(archive, f"{package}/{name}"))
                        return files
        except (zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, EOFError, ValueError) as error:
            raise NoWheel(f"the wheel of {package} is broken: {error}") from error
    raise NoWheel(f"the wheel of {package} has no module for {target.suffix}")


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    told = archive.getinfo(name)
    if told.file_size > _WHEEL_BYTES:
        raise ValueError(f"{name} is too large")
    return archive.read(told)


def _fetched(package: str, target: Target, folder: Path) -> tuple[str, bytes]:
    """The name and the content of the wheel that pip finds, by its own configuration. Raises NoWheel."""
    with _new_folder(folder) as directory:
        argv = [sys.executable, "-m", "pip", "download", *_PIP, *_PIP_PATIENCE]
        argv += ["--implementation=cp", f"--python-version=3.{target.minor}", f"--abi={target.abi}"]
        argv += [f"--platform={platform}" for platform in target.platforms]
        argv += [f"--dest={directory}", f"{package}{_VERSIONS[package]}"]
        try:
            run.run(argv, timeout=FETCH_SECONDS, env=_pip_environment())
        except (ProgramFailed, ProgramTimeout, ProgramNotFound) as error:
            raise NoWheel(_pip_reason(error)) from error
        found = list(directory.iterdir())
        if len(found) != 1 or not _is_fit(found[0].name, package, target):
            raise NoWheel("pip answered with something else than one wheel of the kind that was asked for")
        return found[0].name, _bounded(found[0])


def _is_fit(name: str, package: str, target: Target) -> bool:
    try:
        project, version, _, tags = parse_wheel_filename(name)
    except InvalidWheelFilename:
        return False
    return project == package and version in _VERSIONS[package] and bool(tags & target.tags)


def _pip_environment() -> dict[str, str]:
    """What pip's own configuration may consist of, beside its files."""
    return {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.lower() in _PIP_VARIABLES}


def _pip_reason(error: ProgramFailed | ProgramTimeout | ProgramNotFound) -> str:
    lines = [line for line in str(error.facts.get("stderr", "")).splitlines() if line.startswith("ERROR: ")]
    told = lines[-1].removeprefix("ERROR: ") if lines else error.message
    return f"pip found none: {told}"[:300]


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_WHEEL_BYTES + 1)
    if len(content) > _WHEEL_BYTES:
        raise NoWheel(f"{path.name} is larger than {_WHEEL_BYTES} bytes")
    return content


def _record(folder: Path, package: str) -> _Kept | None:
    try:
        kept = _Kept.model_validate_json((folder / f"{package}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return kept if kept.file is None or Path(kept.file).name == kept.file else None


def _told(record: _Kept) -> bytes:
    return record.model_dump_json(exclude_none=True).encode()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all; who reads at the same time sees the old or the new."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_NEW)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sweep(folder: Path) -> None:
    """Remove what a process that was killed left half done."""
    for left in folder.glob(f"{_NEW}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > FAILURE_KEPT.total_seconds():
                shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextlib.contextmanager
def _new_folder(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=_NEW))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

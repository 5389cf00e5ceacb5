"""Wheels for the Pythons of sources: which are looked for, how they are kept, and what an agent may make of it."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rehost.errors import SourceProtocol
from rehost.source.hand_over import WORTHWHILE_BYTES, looked_ahead
from rehost.source.interpreters import Interpreter, Target, target_of
from rehost.source.session import FileRequest
from rehost.source.shared_objects import trimmed
from rehost.source.wheels import NoWheel, WheelFolder
from tests.support.wire import lying_agent

GLIBC = "glibc 2.36"
DEBIAN = Interpreter(implementation="cpython", suffix=".cpython-311-x86_64-linux-gnu.so", bits=64, libc=GLIBC)


def _target() -> Target:
    target = target_of("3.11.2", "x86_64", DEBIAN)
    assert target is not None
    return target


def _told(suffix: str, libc: str = GLIBC, bits: int = 64, implementation: str = "cpython") -> Interpreter:
    return Interpreter(implementation=implementation, suffix=suffix, bits=bits, libc=libc)


@pytest.mark.parametrize(
    ("python", "machine", "told", "abi", "first", "last"),
    [
        ("3.11.2", "x86_64", DEBIAN, "cp311", "manylinux_2_35_x86_64", "manylinux1_x86_64"),
        (
            "3.6.8",
            "x86_64",
            _told(".cpython-36m-x86_64-linux-gnu.so", "glibc 2.17"),
            "cp36m",
            "manylinux_2_17_x86_64",
            "manylinux1_x86_64",
        ),
        (
            "3.13.0rc1",
            "aarch64",
            _told(".cpython-313t-aarch64-linux-gnu.so"),
            "cp313t",
            "manylinux_2_35_aarch64",
            "manylinux2014_aarch64",
        ),
        (
            "3.12.3",
            "x86_64",
            _told(".cpython-312-x86_64-linux-musl.so", ""),
            "cp312",
            "musllinux_1_2_x86_64",
            "musllinux_1_1_x86_64",
        ),
        (
            "3.9.2",
            "x86_64",
            _told(".cpython-39-i386-linux-gnu.so", bits=32),
            "cp39",
            "manylinux_2_35_i686",
            "manylinux1_i686",
        ),
    ],
)
def test_a_python_is_recognised(python: str, machine: str, told: Interpreter, abi: str, first: str, last: str) -> None:
    target = target_of(python, machine, told)
    assert target is not None
    assert (target.abi, target.platforms[0], target.platforms[-1]) == (abi, first, last)


@pytest.mark.parametrize(
    ("python", "machine", "told"),
    [
        ("3.11.2", "x86_64", None),
        ("3.11.2", "x86_64", _told(DEBIAN.suffix, implementation="pypy")),
        ("3.999.1", "x86_64", _told(".cpython-3999-x86_64-linux-gnu.so")),
        ("3.99.1", "x86_64", _told(".cpython-399-x86_64-linux-gnu.so")),
        ("3.11.2 --index-url=x", "x86_64", DEBIAN),
        ("3.11.2\n", "x86_64", DEBIAN),
        ("3.12.2", "x86_64", DEBIAN),
        ("2.7.18", "x86_64", DEBIAN),
        ("3.11.2", "../x86_64", DEBIAN),
        ("3.11.2", "x86_64", _told(".cpython-311-../../x-linux-gnu.so")),
        ("3.11.2", "x86_64", _told(".cpython-311d-x86_64-linux-gnu.so")),
        ("3.11.2", "x86_64", _told(DEBIAN.suffix, "glibc 2.3")),
        ("3.11.2", "x86_64", _told(DEBIAN.suffix, "glibc 2.36 --platform=any")),
        ("3.11.2", "x86_64", _told(DEBIAN.suffix, bits=16)),
    ],
)
def test_an_absurd_python_has_no_wheels(python: str, machine: str, told: Interpreter | None) -> None:
    assert target_of(python, machine, told) is None


def _wheel(compiled: bytes, name: str = f"backend_c{DEBIAN.suffix}") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zstandard/__init__.py", "from .backend_c import *\n")
        archive.writestr(f"zstandard/{name}", compiled)
        archive.writestr(f"zstandard/_cffi{DEBIAN.suffix}", b"not needed")
    return file.getvalue()


_NAME = "zstandard-0.25.0-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"


class _Pip:
    """A program in the place of Python, which writes what it is told to and keeps its arguments."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._log = folder / "argv"
        self.answers(_wheel(b"code"))
        program = folder / "python"
        program.write_text(
            f'#!/bin/sh\n[ "$1" = -m ] || exec {sys.executable} "$@"\n'
            f'printf "%s\\n" called "$@" >> {self._log}\n'
            'for word; do case "$word" in --dest=*) to="${word#--dest=}";; esac; done\n'
            f'if [ -e {folder}/refuse ]; then echo "ERROR: nothing fits" >&2; exit 1; fi\n'
            f'cp {folder}/answer/* "$to/"\n'
        )
        program.chmod(0o755)
        self._folder = folder
        monkeypatch.setattr(sys, "executable", str(program))

    def answers(self, content: bytes, name: str = _NAME) -> None:
        answer = self._log.parent / "answer"
        answer.mkdir(exist_ok=True)
        for old in answer.iterdir():
            old.unlink()
        (answer / name).write_bytes(content)

    def refuses(self, refuse: bool = True) -> None:
        (self._folder / "refuse").touch() if refuse else (self._folder / "refuse").unlink()

    @property
    def calls(self) -> list[list[str]]:
        if not self._log.exists():
            return []
        return [call.split("\n")[:-1] for call in self._log.read_text().split("called\n")[1:]]


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Pip:
    folder = tmp_path / "bin"
    folder.mkdir()
    return _Pip(folder, monkeypatch)


def test_a_wheel_is_fetched_once_and_kept(pip: _Pip, tmp_path: Path) -> None:
    folder = WheelFolder(tmp_path / "wheels")
    files = folder.files("zstandard", _target())
    assert files == {"__init__.py": b"from .backend_c import *\n", f"backend_c{DEBIAN.suffix}": b"code"}
    assert folder.files("zstandard", _target()) == files
    (call,) = pip.calls
    assert call[:3] == ["-m", "pip", "download"]
    assert {"--only-binary=:all:", "--no-deps", "--python-version=3.11", "--abi=cp311"} < set(call)
    assert call[-1].startswith("zstandard")
    kept = tmp_path / "wheels" / "cp311-manylinux_2_35_x86_64"
    assert sorted(path.name for path in kept.iterdir()) == [_NAME, "zstandard.json"]
    told = json.loads((kept / "zstandard.json").read_text())
    assert told["sha256"] == hashlib.sha256((kept / _NAME).read_bytes()).hexdigest()


def test_a_kept_wheel_that_was_changed_is_fetched_again_and_must_be_the_same(pip: _Pip, tmp_path: Path) -> None:
    folder = WheelFolder(tmp_path / "wheels")
    files = folder.files("zstandard", _target())
    kept = tmp_path / "wheels" / "cp311-manylinux_2_35_x86_64" / _NAME
    kept.write_bytes(_wheel(b"other"))
    assert folder.files("zstandard", _target()) == files
    assert len(pip.calls) == 2
    kept.write_bytes(b"")
    pip.answers(_wheel(b"other"))
    with pytest.raises(NoWheel, match="another SHA-256"):
        folder.files("zstandard", _target())


def test_a_failure_is_remembered_for_a_day(pip: _Pip, tmp_path: Path) -> None:
    folder = WheelFolder(tmp_path / "wheels")
    pip.refuses()
    for _ in range(2):
        with pytest.raises(NoWheel, match="nothing fits"):
            folder.files("zstandard", _target())
    assert len(pip.calls) == 1
    pip.refuses(False)
    record = tmp_path / "wheels" / "cp311-manylinux_2_35_x86_64" / "zstandard.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps({**told, "fetched_at": (datetime.now(UTC) - timedelta(hours=25)).isoformat()}))
    assert folder.files("zstandard", _target())
    assert len(pip.calls) == 2


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (_wheel(b"code"), "zstandard-0.25.0-cp311-cp311-manylinux_2_17_aarch64.whl"),
        (_wheel(b"code"), "zstandard-9.0.0-cp311-cp311-manylinux_2_17_x86_64.whl"),
        (_wheel(b"code"), "other-0.25.0-cp311-cp311-manylinux_2_17_x86_64.whl"),
        (_wheel(b"code"), "zstandard.tar.gz"),
        (b"no archive", _NAME),
        (_wheel(b"code")[:-30], _NAME),
        (_wheel(b"code", "backend_c.cpython-312-x86_64-linux-gnu.so"), _NAME),
    ],
)
def test_what_is_no_such_wheel_is_not_taken(pip: _Pip, tmp_path: Path, content: bytes, name: str) -> None:
    pip.answers(content, name)
    with pytest.raises(NoWheel):
        WheelFolder(tmp_path / "wheels").files("zstandard", _target())


def test_a_folder_that_cannot_be_written_is_no_wheel(pip: _Pip, tmp_path: Path) -> None:
    (tmp_path / "wheels").write_text("a file")
    with pytest.raises(NoWheel):
        WheelFolder(tmp_path / "wheels").files("zstandard", _target())


def test_what_is_no_elf_is_not_trimmed() -> None:
    for content in (b"", b"text" * 100, b"\x7fELF" + b"\x02\x01" + b"\xff" * 100, b"\x7fELF\x02\x01" + bytes(100)):
        assert trimmed(content) == content


def test_many_small_files_are_as_good_as_a_large_one() -> None:
    few = [FileRequest(number, b"f", 10) for number in range(100)]
    size, again = looked_ahead(few)
    assert (size, list(again)) == (1000, few)
    size, again = looked_ahead(FileRequest(number, b"f", 10) for number in range(20_000))
    assert (size, len(list(again))) == (WORTHWHILE_BYTES, 20_000)


_HELLO = "HELLO_BODY['interpreter'] = {}\nframe(HELLO, json.dumps(HELLO_BODY).encode())\n"


def _reads(lie: str, wheels: Path) -> tuple[str, ...]:
    with lying_agent(lie, compress_level=3, wheels=wheels) as session:
        session.equipment.complete(WORTHWHILE_BYTES, blocks=True)
        return tuple(session.notes())


def test_an_agent_that_lies_about_its_python_goes_without(pip: _Pip, tmp_path: Path) -> None:
    absurd = {"implementation": "cpython", "suffix": "/../../x.so", "bits": 64, "libc": "--index-url=x"}
    notes = _reads(_HELLO.format(absurd), tmp_path / "wheels")
    assert [("without" in note) for note in notes] == [True, True]
    assert pip.calls == []
    assert not (tmp_path / "wheels").exists()


@pytest.mark.parametrize(
    "answer",
    [
        "{}",
        "dict(hashes=['sha256'], codecs=['zstd'], codec='lzma', refused={})",
        "dict(hashes=[], codecs=['zstd'], codec='zstd', refused={})",
        "dict(hashes=['sha256'], codecs='zstd', codec='zstd', refused={})",
        "dict(hashes=['sha256'], codecs=['zstd'], codec='zstd', refused={str(n): '' for n in range(11)})",
    ],
)
def test_an_agent_that_lies_about_what_it_loaded_is_ended(pip: _Pip, tmp_path: Path, answer: str) -> None:
    hello = _HELLO.format(DEBIAN.model_dump()).replace("HELLO_BODY", "HELLO_BODY['python'] = '3.11.2'; HELLO_BODY", 1)
    with pytest.raises(SourceProtocol):
        _reads(hello + f"hear_until(110)\nframe(50, json.dumps({answer}).encode())\n", tmp_path / "wheels")

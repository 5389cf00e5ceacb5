"""The hand-over of compiled libraries to real Pythons that lack them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import xxhash

from rehost.errors import SourceUnreachable
from rehost.replication.bundles import Bundle
from rehost.source.agent_program import PYTHON_OPTIONS, bootstrap
from rehost.source.agent_session import AgentSession, open_program
from rehost.source.block_agent import AgentBlocks
from rehost.source.block_session import BLOCK_BYTES, Area, Piece, blocks_of
from rehost.source.hand_over import WORTHWHILE_BYTES
from rehost.source.interpreters import target_of
from rehost.source.session import FileRequest
from rehost.source.wheels import NoWheel, WheelFolder

_SIZE = WORTHWHILE_BYTES + 12_345


def _pythons() -> list[str]:
    """Pythons of this machine without these libraries, the oldest that the agent promises to run on first."""
    found = ["/usr/bin/python3"]
    for minor in (6, 7, 13):
        there = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python3.{minor}"))
        program = str(there[-1]) if there else shutil.which(f"python3.{minor}")
        found += [program] if program else []
    ask = "import sys, importlib.util as u; sys.exit(any(map(u.find_spec, ('xxhash', 'zstandard'))))"
    return [python for python in found if subprocess.run([python, "-I", "-c", ask], check=False).returncode == 0]


PYTHONS = pytest.mark.parametrize(
    "python", _pythons() or [pytest.param("", marks=pytest.mark.skip("every Python here has the libraries"))]
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    pattern = b"".join(hashlib.sha256(bytes([n])).digest() * 20 for n in range(256))
    (folder / "file").write_bytes((pattern * (_SIZE // len(pattern) + 1))[:_SIZE])
    return folder


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "wheels"


def _session(python: str, tree: Path, wheels: Path | None) -> contextlib.AbstractContextManager[AgentSession]:
    return open_program(
        lambda length: [python, *PYTHON_OPTIONS, bootstrap(length)],
        host="here",
        root=os.fsencode(tree),
        explain=lambda status, stderr, greeted: SourceUnreachable(host="here", reason=stderr[-500:]),
        compress_level=3,
        bandwidth_limit_kbps=0,
        wheels=wheels,
    )


class _Seen:
    """What a session was like."""

    def __init__(self, python: str, tree: Path, wheels: Path | None) -> None:
        arrived: list[Bundle] = []
        with _session(python, tree, wheels) as session:
            self.hello = session.hello
            self.before = session.codec
            request = FileRequest(0, b"file", _SIZE)
            (content,) = session.read([request], lambda names: [True] * len(names), arrived.append)
            session.equipment.complete(0, blocks=True)
            self.codec, self.hashes, self.notes = session.codec, session.equipment.hashes, list(session.notes())
            self.wire = session.bytes_on_wire()
        self.names = [chunk.sha256 for chunk in content.chunks]
        chunks: dict[bytes, bytes] = {}
        for bundle in arrived:
            raw, at = bundle.raw(), 0
            for name, length in zip(bundle.names, bundle.lengths, strict=True):
                chunks[name] = raw[at : at + length]
                at += length
        self.raw = b"".join(chunks[name] for name in self.names)


@PYTHONS
def test_the_same_bytes_arrive_with_and_without(python: str, tree: Path, wheels: Path) -> None:
    without = _Seen(python, tree, None)
    assert (without.codec, without.hashes, without.notes) == ("zlib", ("sha256",), [])
    target = target_of(without.hello.python, without.hello.machine, without.hello.interpreter)
    assert target is not None
    handed = _Seen(python, tree, wheels)
    assert handed.before == "zlib"
    assert handed.names == without.names
    assert handed.raw == without.raw == (tree / "file").read_bytes()
    assert len(handed.names) == -(-_SIZE // (1 << 20))
    try:
        for package in ("xxhash", "zstandard"):
            WheelFolder(wheels).files(package, target)
    except NoWheel as error:
        assert handed.codec == "zlib" and "goes on without it" in handed.notes[0]
        pytest.skip(f"no wheels can be fetched here: {error}")
    assert (handed.codec, "xxh3_128" in handed.hashes) == ("zstd", True)
    assert [note.split()[0] for note in handed.notes] == ["zstandard", "xxhash"]
    assert handed.wire < without.wire


@PYTHONS
def test_blocks_are_compared_by_xxh3_where_it_can_be_handed_over(python: str, tree: Path, wheels: Path) -> None:
    area = Area(0, 0, _SIZE, "gap", str(tree / "file"), 0, file=True)
    with _session(python, Path("/"), wheels) as session:
        blocks = AgentBlocks(session)
        used = blocks.used_blocks(area, "off")
        hashes = list(blocks.hashes())
        asked = Piece(blocks_of(used.runs), np.zeros((used.blocks, 16), np.uint8))
        answers = blocks.read_blocks(area, hashes[0], [asked], lambda names: [False] * len(names), lambda _: None)
        batch = list(answers)[0]  # noqa: RUF015
        notes = list(session.notes())
    raw = (tree / "file").read_bytes()
    block = raw[:BLOCK_BYTES]
    assert batch.names[0].tobytes() == hashlib.sha256(block).digest()
    if "goes on without it" in notes[0]:
        assert hashes == ["blake2b_128"]
        assert batch.hashes[0].tobytes() == hashlib.blake2b(block, digest_size=16).digest()
        pytest.skip(f"no wheels can be fetched here: {notes[0]}")
    assert hashes == ["xxh3_128", "blake2b_128"]
    assert batch.hashes[0].tobytes() == xxhash.xxh3_128_digest(block)
    assert [note.split()[0] for note in notes] == ["xxhash", "zstandard"]


def _kept_wheel(wheels: Path, python: str, tree: Path, compiled: bytes) -> None:
    """Put a wheel of zstandard with that code where it would have been kept."""
    hello = _Seen(python, tree, None).hello
    target = target_of(hello.python, hello.machine, hello.interpreter)
    assert target is not None
    folder = wheels / target.key
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "broken.whl", "w") as archive:
        archive.writestr("zstandard/__init__.py", "from .backend_c import *\n")
        archive.writestr(f"zstandard/backend_c{target.suffix}", compiled)
    digest = hashlib.sha256((folder / "broken.whl").read_bytes()).hexdigest()
    now = datetime.now(UTC).isoformat()
    (folder / "zstandard.json").write_text(json.dumps({"file": "broken.whl", "sha256": digest, "fetched_at": now}))
    (folder / "xxhash.json").write_text(json.dumps({"reason": "there is none", "fetched_at": now}))


def _library(tmp_path: Path, text: str) -> bytes:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is here")
    (tmp_path / "library.c").write_text(text)
    argv = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / "library.so"), str(tmp_path / "library.c")]
    subprocess.run(argv, check=True)
    return (tmp_path / "library.so").read_bytes()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("", id="no library"),
        pytest.param("int PyInit_other;", id="a library without the module"),
        pytest.param("#include <stdlib.h>\nvoid *PyInit_backend_c(void) { abort(); }", id="one that ends the process"),
        pytest.param("void *PyInit_backend_c(void) { return (void *)16; }", id="one that breaks the process"),
    ],
)
def test_a_broken_library_is_done_without(tmp_path: Path, tree: Path, code: str) -> None:
    _kept_wheel(tmp_path / "wheels", "/usr/bin/python3", tree, _library(tmp_path, code) if code else b"rubbish")
    seen = _Seen("/usr/bin/python3", tree, tmp_path / "wheels")
    assert (seen.codec, len(seen.names)) == ("zlib", -(-_SIZE // (1 << 20)))
    assert [note.split("has no ")[1].split(",")[0] for note in seen.notes] == ["zstandard", "xxhash"]
    assert seen.notes[1].endswith("there is none.")


_FROM_A_FOLDER = """
import os, sys, json
sys.path.insert(0, sys.argv[1])
sys.modules["ctypes"] = None
if hasattr(os, "memfd_create"):
    del os.memfd_create
from rehost.agent import wheels
files = {name: bytes.fromhex(text) for name, text in json.load(sys.stdin).items()}
assert wheels._tried("xxhash", files) is None
wheels._load("xxhash", files)
import xxhash
print(xxhash.xxh3_128(b"").hexdigest(), xxhash.__name__)
maps = open("/proc/self/maps").read()
assert "/library.so (deleted)" in maps, maps
"""


@PYTHONS
def test_without_files_in_memory_a_private_folder_serves_and_goes(python: str, tree: Path, wheels: Path) -> None:
    hello = _Seen(python, tree, None).hello
    target = target_of(hello.python, hello.machine, hello.interpreter)
    assert target is not None
    try:
        files = WheelFolder(wheels).files("xxhash", target)
    except NoWheel as error:
        pytest.skip(f"no wheels can be fetched here: {error}")
    home = tree.parent / f"tmp-{target.abi}"
    home.mkdir()
    done = subprocess.run(
        [python, "-I", "-B", "-c", _FROM_A_FOLDER, str(Path(__file__).parents[2])],
        input=json.dumps({name: text.hex() for name, text in files.items()}).encode(),
        stdout=subprocess.PIPE,
        env={"TMPDIR": str(home)},
        check=True,
    )
    assert done.stdout.split() == [b"99aa06d3014798d86001c324468d497f", b"xxhash"]
    assert list(home.iterdir()) == []

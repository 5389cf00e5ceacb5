"""Nothing that an agent says is believed: every lie ends the session with Source.Protocol."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard

from rehost.agent import protocol
from rehost.errors import SourceAgentFailed, SourceProtocol, SourceUnreachable
from rehost.source.channel import _unpacked
from rehost.source.session import FileRequest
from tests.support.wire import lying_agent, volume

HELLO = "frame(HELLO, json.dumps(HELLO_BODY).encode())\n"
READ = HELLO + "hear_until(70)\n"  # until all was requested
ASKED = READ + "frame(ASK, head(0) + row(7, 0, 0, 1000, NAME)); hear_until(71)\n"
DELIVERED = ASKED + "frame(DATA, pack(RAW))\n"
TRUTH = ASKED + (
    "frame(DATA, pack(RAW))\n"
    "frame(DONE, head(0) + json.dumps([[7, 1000, 5, 6, False, None, 0, 1]]).encode())\n"
    "frame(RESULT, pack(b'{}'))\n"
)


def _read(lie: str) -> list[bytes]:
    arrived: list[bytes] = []
    with lying_agent(lie) as session:
        requests = [FileRequest(7, b"etc/motd", 1000)]
        contents = list(session.read(requests, lambda names: [True] * len(names), lambda _, raw: arrived.append(raw)))
        assert [content.index for content in contents] == [7]
    return arrived


def test_the_truth_is_taken() -> None:
    assert _read(TRUTH) == [b"x" * 1000]
    assert _read(TRUTH.replace("pack(RAW))", "pack(zlib.compress(RAW), 1, 1000))")) == [b"x" * 1000]


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("a hello of another version", "HELLO_BODY['protocol'] = 2\n" + HELLO),
        ("a hello that is no JSON", "frame(HELLO, b'{')"),
        ("a hello of a wrong kind", "frame(SCANNED, b'{}')"),
        ("a hello with wrong types", "HELLO_BODY['uid'] = 'root'\n" + HELLO),
        ("an endless hello", "frame(HELLO, b'', length=1 << 31)"),
        ("content of another name", ASKED + "frame(DATA, pack(b'y' * 1000))"),
        ("content of another length", ASKED + "frame(DATA, pack(RAW[:-1]))"),
        ("content nobody asked for", READ + "frame(DATA, pack(RAW))"),
        ("content of another length than its head", ASKED + "frame(DATA, pack(RAW[:-1], 0, 1000))"),
        ("a zlib bomb", ASKED + "frame(DATA, pack(zlib.compress(bytes(1 << 24)), 1, 1000))"),
        ("a bomb that says so", ASKED + "frame(DATA, pack(zlib.compress(bytes(1 << 24)), 1, 1 << 24))"),
        ("a cut zlib stream", ASKED + "frame(DATA, pack(zlib.compress(RAW)[:-3], 1, 1000))"),
        ("an unknown codec", ASKED + "frame(DATA, pack(RAW, 9, 1000))"),
        ("an oversized frame", ASKED + "frame(DATA, b'', length=(8 << 20) + 1)"),
        ("a frame of an unknown kind", ASKED + "frame(99)"),
        ("a file nobody asked for", READ + "frame(ASK, head(0) + row(8, 0, 0, 1000, NAME))"),
        ("a chunk that is too long", READ + "frame(ASK, head(0) + row(7, 0, 0, (1 << 20) + 1, NAME))"),
        ("a chunk over a cut", READ + "frame(ASK, head(0) + row(7, 0, (1 << 20) - 1, 2, NAME))"),
        ("an empty chunk", READ + "frame(ASK, head(0) + row(7, 0, 0, 0, NAME))"),
        ("a chunk at the end of all", READ + "frame(ASK, head(0) + row(7, 0, (1 << 64) - 1, 1, NAME))"),
        (
            "chunks that overlap",
            READ + "frame(ASK, head(0) + row(7, 0, 0, 1000, NAME) + row(7, 0, 999, 1000, NAME))",
        ),
        ("a fourth attempt", READ + "frame(ASK, head(0) + row(7, 3, 0, 1000, NAME))"),
        ("a question out of turn", READ + "frame(ASK, head(1))"),
        ("a question cut short", READ + "frame(ASK, head(0) + b'x')"),
        ("a question that is too long", READ + "frame(ASK, head(0) + 257 * row(7, 0, 0, 1000, NAME))"),
        ("questions without end", READ + "for n in range(9): frame(ASK, head(n))"),
        ("an end before the content", TRUTH.replace("frame(DATA, pack(RAW))\n", "")),
        ("an end that was not asked", READ + "frame(DONE, head(0) + b'[]')"),
        ("a file of another index", TRUTH.replace("[[7, ", "[[8, ")),
        ("a file of another type", TRUTH.replace("[[7, 1000", "[[7, '1000'")),
        ("a file smaller than its chunks", TRUTH.replace("[[7, 1000", "[[7, 999")),
        ("a file of other chunks", TRUTH.replace("None, 0, 1]]", "None, 0, 2]]")),
        ("a time that no file has", TRUTH.replace("1000, 5, 6", "1000, 5, 1 << 63")),
        ("a number without end", DELIVERED + "frame(DONE, head(0) + b'[[' + b'7' * 9999 + b']]')"),
        ("JSON without end", DELIVERED + "frame(DONE, head(0) + b'[' * 99999)"),
        ("an early end", READ + "frame(RESULT, pack(b'{}'))"),
    ],
)
def test_a_lie_is_seen(name: str, lie: str) -> None:
    with pytest.raises(SourceProtocol):
        _read(lie)


def test_what_broke_says_so() -> None:
    with pytest.raises(SourceUnreachable, match="the last words"):
        _read(ASKED + "sys.exit('the last words')")
    with pytest.raises(SourceAgentFailed, match="MemoryError"):
        _read(ASKED + "frame(FAILED, json.dumps(dict(type='MemoryError', message='')).encode())")


ROWS = (
    HELLO
    + """hear_until(67)
import array
def rows(paths, volume=0, mode=0o100644, size=0, target=b"", xattrs=(), count=None):
    n = len(paths)
    number = lambda code, value: array.array(code, [value] * n).tobytes()
    names = b"".join(k + v for k, v in xattrs)
    columns = [b"\\0".join(paths), number("H", volume), number("I", mode), number("I", 0), number("I", 0),
        number("Q", size), number("q", 0), number("q", -5), number("q", 0), number("I", 0), number("I", 0),
        number("I", 0xFFFFFFFF), number("Q", 1), number("Q", 1), b"\\0".join([target] * n),
        array.array("I", [len(xattrs) if count is None else count] + [0] * (n - 1)).tobytes(),
        array.array("I", [len(k) for k, v in xattrs]).tobytes(),
        array.array("I", [len(v) for k, v in xattrs]).tobytes(), names]
    return struct.pack(">I", n) + b"".join(struct.pack(">I", len(c)) + c for c in columns)
def end(n):
    frame(SCANNED, json.dumps(dict(rows=n, skipped=[], skipped_total=0)).encode())
"""
)


def _scan(lie: str) -> list[dict[str, object]]:
    with lying_agent(ROWS + lie) as session:
        return [row for batch in session.scan([volume()], []) for row in batch.to_pylist()]


def test_true_rows_are_taken() -> None:
    first, second = _scan("frame(ROWS, pack(rows([b'', b'a/b'], xattrs=((b'user.a', b'1'),)))); end(2)")
    assert (first["path"], second["path"]) == (b"", b"a/b")
    assert first["xattrs"] == [{"name": b"user.a", "value": b"1"}]
    assert second["mtime_ns"] == -5
    assert second["flags"] == 0x70


@pytest.mark.parametrize(
    "lie",
    [
        "rows([b'/etc'])",
        "rows([b'etc/'])",
        "rows([b'a//b'])",
        "rows([b'a/../../b'])",
        "rows([b'..'])",
        "rows([b'a/./b'])",
        "rows([b'a' * 256])",
        "rows([b'a', b'b'])[:-1]",
        "rows([b'a', b'b']) + b'x'",
        "rows([b'a\\0b'])",
        "rows([])",
        "rows([b'a'] * 4097)",
        "rows([b'a'], volume=1)",
        "rows([b'a'], mode=0o644)",
        "rows([b'a'], mode=0x80000000 | 0o100644)",
        "rows([b'a'], size=1 << 63)",
        "rows([b'a'], mode=0o40755, size=1)",
        "rows([b'a'], target=b'x')",
        "rows([b'a'], mode=0o120777)",
        "rows([b'a'], mode=0o120777, target=b't' * 4096)",
        "rows([b'a'], xattrs=((b'user.a', b''), (b'user.a', b'')))",
        "rows([b'a'], xattrs=((b'', b''),))",
        "rows([b'a'], xattrs=((b'user.a', b''),), count=2)",
        "rows([b'a'], xattrs=((b'user.a', b'v' * 65537),))",
        "struct.pack('>I', 1) + struct.pack('>I', 0xFFFFFFFF)",
    ],
)
def test_a_lie_in_a_row_is_seen(lie: str) -> None:
    with pytest.raises(SourceProtocol):
        _scan(f"frame(ROWS, pack({lie})); end(1)")


def test_another_number_of_rows_is_seen() -> None:
    with pytest.raises(SourceProtocol):
        _scan("frame(ROWS, pack(rows([b'a']))); end(2)")


@pytest.mark.parametrize("compress", [zlib.compress, zstandard.ZstdCompressor(write_content_size=False).compress])
def test_a_bomb_takes_no_memory(compress: Callable[[bytes], bytes]) -> None:
    packed = memoryview(compress(bytes(1 << 26)))
    codec = protocol.ZLIB if compress is zlib.compress else protocol.ZSTD
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, zstandard.ZstdError)):
            _unpacked(codec, packed, 1000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()

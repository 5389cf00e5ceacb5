"""Nothing that an agent says is believed: every lie ends the session with Source.Protocol."""

from __future__ import annotations

import hashlib
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from rehost.agent import protocol
from rehost.errors import SourceAgentFailed, SourceProtocol, SourceUnreachable
from rehost.replication.bundles import BadBundle, Bundle
from rehost.replication.store import Store
from rehost.source.session import FileRequest
from tests.support.wire import lying_agent, take, volume

HELLO = "frame(HELLO, json.dumps(HELLO_BODY).encode())\n"
READ = HELLO + "hear_until(70)\n"  # until all was requested
ASKED = READ + "frame(ASK, head(0) + row(7, 0, 0, 1000, NAME)); hear_until(71)\n"
DELIVERED = ASKED + "frame(DATA, bundle([RAW]))\n"
TRUTH = DELIVERED + "frame(DONE, done(0, [(7, 1000, 5, 6, 0, 0, 1)]))\n" + "frame(RESULT, pack(b'{}'))\n"
# Two chunks of one file, the second one short.
TWO = READ + "frame(ASK, head(0) + row(7, 0, 0, 1000, NAME) + row(7, 0, 1000, 3, SHORT_NAME)); hear_until(71)\n"
TWO_TRUE = TWO + (
    "frame(DATA, bundle([RAW, b'abc']))\nframe(DONE, done(0, [(7, 1003, 5, 6, 0, 0, 2)]))\nframe(RESULT, pack(b'{}'))\n"
)


def _read(lie: str) -> list[bytes]:
    arrived: list[bytes] = []
    with lying_agent(lie) as session:
        requests = [FileRequest(7, b"etc/motd", 1000)]
        take = lambda bundle: arrived.append(bundle.raw())  # noqa: E731
        contents = list(session.read(requests, lambda names: [True] * len(names), take))
        assert [content.index for content in contents] == [7]
    return arrived


def test_the_truth_is_taken() -> None:
    assert _read(TRUTH) == [b"x" * 1000]
    assert _read(TRUTH.replace("bundle([RAW])", "data(1, 1, 1000, zlib.compress(RAW))")) == [b"x" * 1000]
    assert _read(TWO_TRUE) == [b"x" * 1000 + b"abc"]
    apart = "frame(DATA, bundle([RAW])); frame(DATA, bundle([b'abc']))"
    assert _read(TWO_TRUE.replace("frame(DATA, bundle([RAW, b'abc']))", apart)) == [b"x" * 1000, b"abc"]


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("a hello of another version", "HELLO_BODY['protocol'] = 1\n" + HELLO),
        ("a hello that is no JSON", "frame(HELLO, b'{')"),
        ("a hello of a wrong kind", "frame(SCANNED, b'{}')"),
        ("a hello with wrong types", "HELLO_BODY['uid'] = 'root'\n" + HELLO),
        ("an endless hello", "frame(HELLO, b'', length=1 << 31)"),
        ("content of another length", ASKED + "frame(DATA, bundle([RAW[:-1]]))"),
        ("content nobody asked for", READ + "frame(DATA, bundle([RAW]))"),
        ("content of another length than its head", ASKED + "frame(DATA, data(0, 1, 1000, RAW[:-1]))"),
        ("content that is longer packed", ASKED + "frame(DATA, data(1, 1, 1000, bytes(1001)))"),
        ("a bomb that says so", ASKED + "frame(DATA, data(1, 1, 1 << 24, zlib.compress(bytes(1 << 24))))"),
        ("an unknown codec", ASKED + "frame(DATA, data(9, 1, 1000, RAW))"),
        ("content without a head", ASKED + "frame(DATA, b'x')"),
        ("a bundle of nothing", ASKED + "frame(DATA, data(0, 0, 0, b''))"),
        ("a bundle of more chunks than were wanted", ASKED + "frame(DATA, bundle([RAW, RAW]))"),
        ("a bundle in another order", TWO + "frame(DATA, bundle([b'abc']))"),
        ("a bundle that holds less than it counts", TWO + "frame(DATA, data(0, 2, 1000, RAW))"),
        ("one bundle twice", DELIVERED + "frame(DATA, bundle([RAW]))"),
        (
            "a bundle that is too long",
            READ
            + "hash_of = lambda raw: hashlib.sha256(raw).digest()\n"
            + "BIG, OTHER, MIB = b'b' * (1 << 20), b'o' * (1 << 20), 1 << 20\n"
            + "frame(ASK, head(0) + row(7, 0, 0, MIB, hash_of(BIG)) + row(7, 0, MIB, MIB, hash_of(OTHER)))\n"
            + "hear_until(71); frame(DATA, bundle([BIG, OTHER]))",
        ),
        ("two lengths of one chunk", READ + "frame(ASK, head(0) + row(7, 0, 0, 9, NAME) + row(7, 0, 9, 8, NAME))"),
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
        ("a question that is too long", READ + "frame(ASK, head(0) + 4097 * row(7, 0, 0, 1000, NAME))"),
        ("questions without end", READ + "for n in range(9): frame(ASK, head(n))"),
        ("an end before the content", TRUTH.replace("frame(DATA, bundle([RAW]))\n", "")),
        ("an end before half of the content", TWO_TRUE.replace("[RAW, b'abc']", "[RAW]")),
        ("an end that was not asked", READ + "frame(DONE, done(0, []))"),
        ("an end out of turn", TRUTH.replace("done(0, ", "done(1, ")),
        ("an end that is cut short", TRUTH.replace("0, 0, 1)]))", "0, 0, 1)])[:20])")),
        ("an end without errors", TRUTH.replace("0, 0, 1)]))", "0, 0, 1)])[:-2])")),
        ("an end of more files than it has", TRUTH.replace("0, 0, 1)]))", "0, 0, 1)], count=2))")),
        ("an end of too many files", TRUTH.replace("[(7, 1000, 5, 6, 0, 0, 1)]", "[(7, 1000, 5, 6, 0, 0, 1)] * 4097")),
        ("a file of another index", TRUTH.replace("[(7, ", "[(8, ")),
        ("a file twice", TRUTH.replace("[(7, 1000, 5, 6, 0, 0, 1)]", "[(7, 1000, 5, 6, 0, 0, 1)] * 2")),
        ("a file smaller than its chunks", TRUTH.replace("[(7, 1000", "[(7, 999")),
        ("a file larger than any", TRUTH.replace("[(7, 1000", "[(7, 1 << 63")),
        ("a file of other chunks", TRUTH.replace("0, 0, 1)]", "0, 0, 2)]")),
        ("a file neither stable nor not", TRUTH.replace("5, 6, 0, 0, 1)", "5, 6, 2, 0, 1)")),
        ("a file of another attempt", TRUTH.replace("5, 6, 0, 0, 1)", "5, 6, 0, 3, 1)")),
        ("an error of no file", TRUTH.replace("0, 0, 1)]))", "0, 0, 1)], [[1, 'vanished']]))")),
        ("two errors of one file", TRUTH.replace("0, 0, 1)]))", "0, 0, 1)], [[0, 'vanished'], [0, 'x']]))")),
        ("an error that is no text", TRUTH.replace("0, 0, 1)]))", "0, 0, 1)], [[0, 1]]))")),
        ("errors that are no list", TRUTH.replace("0, 0, 1)]))", "0, 0, 1)], 5))")),
        ("a number without end", DELIVERED + "frame(DONE, done(0, [])[:-2] + b'[[' + b'7' * 9999 + b']]')"),
        ("JSON without end", DELIVERED + "frame(DONE, done(0, [])[:-2] + b'[' * 99999)"),
        ("an early end", READ + "frame(RESULT, pack(b'{}'))"),
    ],
)
def test_a_lie_is_seen(name: str, lie: str) -> None:
    with pytest.raises(SourceProtocol):
        _read(lie)


@pytest.mark.parametrize(
    "lie",
    [
        "bundle([b'y' * 1000])",
        "data(1, 1, 1000, zlib.compress(bytes(1 << 18)))",
        "data(1, 1, 1000, zlib.compress(RAW)[:-3])",
        "data(1, 1, 1000, zlib.compress(RAW) + b'x')",
        "data(2, 1, 1000, zlib.compress(RAW))",
    ],
)
def test_a_bundle_of_other_content_is_seen_when_it_is_unpacked(lie: str) -> None:
    with pytest.raises(BadBundle):
        _read(ASKED + f"frame(DATA, {lie})\n")


def test_a_bundle_of_other_content_is_told_of_the_source(tmp_path: Path) -> None:
    lie = HELLO + (
        ROWS_OF
        + "hear_until(67); frame(ROWS, pack(rows([b'', b'a'], mode=[0o40755, 0o100644], size=1000))); end(2)\n"
        + "hear_until(70); frame(ASK, head(0) + row(1, 0, 0, 1000, NAME)); hear_until(71)\n"
        + "frame(DATA, bundle([b'y' * 1000]))\n"
        + "frame(DONE, done(0, [(1, 1000, 5, 6, 0, 0, 1)])); frame(RESULT, pack(b'{}'))\n"
    )
    with Store.open(tmp_path / "store") as store, lying_agent(lie) as session:
        with pytest.raises(SourceProtocol, match="SHA-256"):
            take(session, store, tmp_path)
        assert list(store.has([hashlib.sha256(b"y" * 1000).digest()])) == [False]


def test_an_end_before_its_content_names_no_file() -> None:
    early = TRUTH.replace("frame(DATA, bundle([RAW]))\n", "")
    with lying_agent(early) as session, pytest.raises(SourceProtocol):
        next(session.read([FileRequest(7, b"a", 1000)], lambda names: [True] * len(names), lambda bundle: None))


def test_an_end_of_more_files_than_a_batch_has_is_seen() -> None:
    lie = READ + (
        "frame(ASK, head(0)); hear_until(71)\n"
        "frame(DONE, done(0, [(n, 0, 5, 6, 0, 0, 0) for n in range(4097)])); frame(RESULT, pack(b'{}'))\n"
    )
    for lied, count in ((lie.replace("4097", "4096"), 4096), (lie, 4097)):
        requests = [FileRequest(number, b"%d" % number, 0) for number in range(count)]
        with lying_agent(lied) as session:
            reading = session.read(requests, lambda names: [], lambda bundle: None)
            if count == 4096:
                assert sum(1 for _ in reading) == count
            else:
                with pytest.raises(SourceProtocol):
                    next(reading)


def test_what_broke_says_so() -> None:
    with pytest.raises(SourceUnreachable, match="the last words"):
        _read(ASKED + "sys.exit('the last words')")
    with pytest.raises(SourceAgentFailed, match="MemoryError"):
        _read(ASKED + "frame(FAILED, json.dumps(dict(type='MemoryError', message='')).encode())")


ROWS_OF = """
import array
def each(value, n):
    return value if isinstance(value, list) else [value] * n
def rows(paths, volume=0, mode=0o100644, size=0, targets=b"", xattrs=(), of_rows=None, mtime=(-5, 0), status=None):
    n = len(paths)
    number = lambda values: array.array("I", values).tobytes()
    if status is None:
        status = b"".join(struct.pack("<8xQIIIH2xQQ16xqI4x16xqI4xqI4xIIII", 0xFFFFFFFF, 1, 0, 0, m, 1, s,
            0, 0, 0, 0, *mtime, 0, 0, 0, 1) for m, s in zip(each(mode, n), each(size, n)))
    names = b"".join(k + v for k, v in xattrs)
    columns = [b"\\0".join(paths), array.array("H", [volume] * n).tobytes(), status, targets,
        number([0] * len(xattrs) if of_rows is None else of_rows), number([len(k) for k, v in xattrs]),
        number([len(v) for k, v in xattrs]), names]
    return struct.pack(">I", n) + b"".join(struct.pack(">I", len(c)) + c for c in columns)
def end(n):
    frame(SCANNED, json.dumps(dict(rows=n, skipped=[], skipped_total=0)).encode())
"""
ROWS = HELLO + "hear_until(67)\n" + ROWS_OF


def _scan(lie: str) -> list[dict[str, object]]:
    with lying_agent(ROWS + lie) as session:
        return [row for batch in session.scan([volume()], []) for row in batch.to_pylist()]


def test_true_rows_are_taken() -> None:
    first, second = _scan("frame(ROWS, pack(rows([b'', b'a/b'], xattrs=((b'user.a', b'1'),)))); end(2)")
    assert (first["path"], second["path"]) == (b"", b"a/b")
    assert first["xattrs"] == [{"name": b"user.a", "value": b"1"}]
    assert second["mtime_ns"] == -5_000_000_000
    assert second["flags"] == 0x70
    assert (first["nlink"], first["dev"], first["ino"]) == (1, 1, 1)
    for odd in (
        "rows([b'', b'a'], size=7, mode=0o40755)",
        "rows([b'', b'\\xff' * 255])",
        "rows([b'a', b'a-b', b'a/b'])",
    ):
        assert {row["size"] for row in _scan(f"frame(ROWS, pack({odd})); end({3 if 'a-b' in odd else 2})")} == {0}


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
        "rows([b'/'.join([b'a' * 200] * 21)])",
        "rows([b'b', b'a'])",
        "rows([b'a', b'a'])",
        "rows([b'', b''])",
        "rows([b'a', b'a/b', b'a-b'])",
        "rows([b'a', b''])",
        "rows([b'a', b'b'])[:-1]",
        "rows([b'a', b'b']) + b'x'",
        "rows([b'a\\0b'])",
        "rows([])",
        "rows([b'%d' % n for n in range(10000, 14097)])",
        "rows([b'a'], volume=1)",
        "rows([b'a'], mode=0o644)",
        "rows([b'a'], mode=0o30644)",
        "rows([b'a'], size=1 << 63)",
        "rows([b'a'], mtime=(0, 10**9))",
        "rows([b'a'], mtime=(1 << 62, 0))",
        "rows([b'a'], mtime=(-(1 << 62), 0))",
        "rows([b'a'], status=bytes(143))",
        "rows([b'a'], status=bytes(288))",
        "rows([b'a'], targets=b'x')",
        "rows([b'a'], mode=0o120777)",
        "rows([b'a'], mode=0o120777, targets=b't' * 4096)",
        "rows([b'a'], mode=0o120777, targets=b't\\0t')",
        "rows([b'a'], xattrs=((b'user.a', b''), (b'user.a', b'')))",
        "rows([b'a'], xattrs=((b'', b''),))",
        "rows([b'a'], xattrs=((b'user.a', b''),), of_rows=[0, 0])",
        "rows([b'a'], xattrs=((b'user.a', b''),), of_rows=[1])",
        "rows([b'a', b'b'], xattrs=((b'user.a', b''), (b'user.b', b'')), of_rows=[1, 0])",
        "rows([b'a'], xattrs=((b'user.a', b'v' * 65537),))",
        "struct.pack('>I', 1) + struct.pack('>I', 0xFFFFFFFF)",
    ],
)
def test_a_lie_in_a_row_is_seen(lie: str) -> None:
    with pytest.raises(SourceProtocol):
        _scan(f"body = {lie}; frame(ROWS, pack(body)); end(int.from_bytes(body[:4], 'big'))")


@pytest.mark.parametrize("after", [b"b", b"a", b"", b"b/x"])
def test_an_order_broken_between_two_frames_is_seen(after: bytes) -> None:
    first = "frame(ROWS, pack(rows([b'a', b'b/x'])))"
    with pytest.raises(SourceProtocol):
        _scan(f"{first}; frame(ROWS, pack(rows([{after!r}]))); end(3)")


def test_another_number_of_rows_is_seen() -> None:
    with pytest.raises(SourceProtocol):
        _scan("frame(ROWS, pack(rows([b'a']))); end(2)")


@pytest.mark.parametrize("compress", [zlib.compress, zstandard.ZstdCompressor(write_content_size=False).compress])
def test_a_bomb_takes_no_memory(compress: Callable[[bytes], bytes]) -> None:
    packed = compress(bytes(1 << 26))
    codec = protocol.ZLIB if compress is zlib.compress else protocol.ZSTD
    tracemalloc.start()
    try:
        with pytest.raises(BadBundle):
            Bundle((bytes(32),), (1000,), codec, packed).raw()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()

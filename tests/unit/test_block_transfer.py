"""Blocks from a source into the store and its index: what is read, what is kept, and which lies are seen."""

from __future__ import annotations

import contextlib
import hashlib
import random
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from rehost.errors import ManifestInvalid, SourceAgentFailed, SourceProtocol
from rehost.ids import new_id
from rehost.progress import silent
from rehost.replication.block_converge import NotConverging, converge
from rehost.replication.block_index import BlockIndex, BlockIndexWriter, Cursor, Rows
from rehost.replication.block_transfer import EVERYTHING, BlockCopy, Runs, parent_index, transfer_blocks
from rehost.replication.block_zeros import KEY, packed, unpacked
from rehost.replication.bundles import Bundle
from rehost.replication.contents import Delivery
from rehost.replication.manifest import BLOCKS_SCHEMA
from rehost.replication.snapshot_tables import check_blocks, write_blocks
from rehost.replication.snapshots import Snapshot
from rehost.replication.store import Store
from rehost.source.agent_session import AgentSession, open_agent
from rehost.source.block_agent import AgentBlocks
from rehost.source.block_images import ImageBlocks
from rehost.source.block_open import open_blocks
from rehost.source.block_session import BLOCK_BYTES, NEW, Area, BlockSession, Piece, areas, blocks_of, runs_of
from rehost.source.connect import PathConnection
from rehost.source.hold_errors import SnapshotFreezeLost
from rehost.source.inventory import Disk, Partition
from tests.support.block_images import area_of, assemble
from tests.support.wire import inventory, lying_agent

MIB = 1 << 20
TAIL = 7 * 512  # of the last block


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as store:
        yield store


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """400 blocks and a bit, half of them zeros, some alike, and a hole."""
    chance = random.Random(4)
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        for number in range(400):
            file.write(chance.choice((bytes(BLOCK_BYTES), b"alike" * 13107 + b"!", chance.randbytes(BLOCK_BYTES))))
            if number == 300:
                file.seek(20 * MIB, 1)
        file.write(chance.randbytes(TAIL))
    return path


@contextlib.contextmanager
def opened(kind: str) -> Iterator[BlockSession]:
    if kind == "image":
        yield ImageBlocks("images", Path, lambda count: None)
        return
    with open_agent(PathConnection(root="/"), compress_level=1 if kind == "packed" else 0) as session:
        yield open_blocks(session)


def take(
    session: BlockSession,
    store: Store,
    area: Area,
    target: Path,
    parent: BlockCopy | None = None,
    only: Mapping[Area, Runs | None] = EVERYTHING,
) -> BlockCopy:
    return transfer_blocks(
        session,
        store,
        [area],
        target,
        parent=parent.index if parent else None,
        state=lambda area: "off",
        only=only,
        progress=silent,
    )


def rows_of(copy: BlockCopy) -> dict[int, tuple[bytes, bytes]]:
    rows = Rows.joined(list(copy.index.rows(0)))
    pairs = zip(rows.hashes, rows.names, strict=True)
    return {int(b): (h.tobytes(), n.tobytes()) for b, (h, n) in zip(rows.blocks, pairs, strict=True)}


@pytest.mark.parametrize("kind", ["agent", "packed", "image"])
def test_a_copy_is_the_disk_and_a_further_one_sends_only_what_changed(
    kind: str, disk: Path, store: Store, tmp_path: Path
) -> None:
    area = area_of(disk)
    raw = disk.read_bytes()
    with opened(kind) as session:
        first = take(session, store, area, tmp_path / "1.parquet")
        blocks = {at // BLOCK_BYTES: raw[at : at + BLOCK_BYTES] for at in range(0, len(raw), BLOCK_BYTES)}
        expected = {
            number: (xxhash.xxh3_128_digest(block), hashlib.sha256(block).digest())
            for number, block in blocks.items()
            if any(block)
        }
        assert rows_of(first) == expected
        assert first.regions[0].used_by == "nonzero"
        assert first.regions[0].used_bytes == sum(len(blocks[number]) for number in expected)
        assert first.report.bytes_new == sum(map(len, {blocks[number] for number in expected}))
        assert first.report.bytes_read < len(raw) - 19 * MIB  # the hole is not read
        assert assemble(first.index, 0, store, tmp_path / "out").read_bytes() == raw

        changed = bytearray(raw)
        gone, fresh, other = sorted(expected)[2], next(n for n in blocks if n not in expected), sorted(expected)[-2]
        changed[gone * BLOCK_BYTES : (gone + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)
        changed[fresh * BLOCK_BYTES + 99] = 1
        changed[other * BLOCK_BYTES] ^= 1
        changed[-1] ^= 1
        disk.write_bytes(changed)
        before = session.bytes_on_wire()
        second = take(session, store, area, tmp_path / "2.parquet", first)
        assert second.report.bytes_new == 2 * BLOCK_BYTES + TAIL
        assert second.report.bytes_changed == 3 * BLOCK_BYTES + TAIL
        assert session.bytes_on_wire() - before < 2 * BLOCK_BYTES + 30_000
        assert assemble(second.index, 0, store, tmp_path / "out").read_bytes() == changed

    snapshot = Snapshot(
        id=new_id("n"),
        source_id="s-" + "0" * 20,
        created_at=datetime.now(UTC),
        inventory=inventory(),
        volumes=(),
        regions=second.regions,
    )
    store.save_snapshot(snapshot, None, second.path)
    kept = parent_index(store, snapshot.id)
    assert kept is not None
    assert [len(rows) for rows in kept.rows(0)] == [len(rows_of(second))]


def test_with_tracking_only_what_was_written_is_read(disk: Path, store: Store, tmp_path: Path) -> None:
    area = area_of(disk)
    with opened("agent") as session:
        first = take(session, store, area, tmp_path / "1.parquet")
        written = sorted(rows_of(first))[10]
        with disk.open("r+b") as file:
            file.seek(written * BLOCK_BYTES)
            file.write(b"written")
        only = {area: np.array([[written, 1]], np.uint64)}
        second = take(session, store, area, tmp_path / "2.parquet", first, only)
        assert assemble(second.index, 0, store, tmp_path / "out").read_bytes() == disk.read_bytes()
        # Blocks of zeros are known for what they are, too.
        zeros = sum(area.block_length(int(n)) for n in blocks_of(session.used_blocks(area, "off").runs))
        zeros -= first.regions[0].used_bytes
        assert sum(area.block_length(int(n)) for n in blocks_of(first.index.zeros(0))) == zeros > 0
        assert second.report.bytes_read == BLOCK_BYTES
        assert (second.index.zeros(0) == first.index.zeros(0)).all()
        assert second.report.bytes_changed == BLOCK_BYTES
        assert not second.report.areas[0].whole
        # Another hash than the parent's cannot be compared by: everything is read.
        index = BlockIndex(second.path, [second.regions[0].model_copy(update={"hash": "other"})])
        third = transfer_blocks(
            session,
            store,
            [area],
            tmp_path / "3.parquet",
            parent=index,
            state=lambda area: "off",
            only=only,
            progress=silent,
        )
        assert third.report.areas[0].whole
        assert rows_of(third) == rows_of(second)


def test_with_tracking_zeros_that_are_written_to_are_read(disk: Path, store: Store, tmp_path: Path) -> None:
    area = area_of(disk)
    with opened("agent") as session:
        first = take(session, store, area, tmp_path / "1.parquet")
        zero, other = int(blocks_of(first.index.zeros(0))[0]), sorted(rows_of(first))[3]
        with disk.open("r+b") as file:
            file.seek(zero * BLOCK_BYTES + 100)
            file.write(b"no zeros any more")
            file.seek(other * BLOCK_BYTES)
            file.write(bytes(BLOCK_BYTES))
        only = {area: np.array([[block, 1] for block in sorted((zero, other))], np.uint64)}
        second = take(session, store, area, tmp_path / "2.parquet", first, only)
        assert second.report.bytes_read == 2 * BLOCK_BYTES
        assert zero in rows_of(second)
        assert other in blocks_of(second.index.zeros(0))
        assert zero not in blocks_of(second.index.zeros(0))
        assert assemble(second.index, 0, store, tmp_path / "out").read_bytes() == disk.read_bytes()
        # What nobody knows of is read although it was not written to.
        without = tmp_path / "without.parquet"
        pq.write_table(pq.read_table(second.path).replace_schema_metadata(BLOCKS_SCHEMA.metadata), without)
        index = BlockIndex(without, second.regions)
        third = transfer_blocks(
            session,
            store,
            [area],
            tmp_path / "3.parquet",
            parent=index,
            state=lambda area: "off",
            only={area: np.empty((0, 2), np.uint64)},
            progress=silent,
        )
        assert third.report.bytes_read == sum(area.block_length(int(n)) for n in blocks_of(second.index.zeros(0)))
        assert (third.index.zeros(0) == second.index.zeros(0)).all()


def test_runs_of_zeros_are_joined_bounded_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Rows(np.array([4], np.uint64), np.zeros((1, 16), np.uint8), np.zeros((1, 32), np.uint8))
    path = tmp_path / "table"
    with BlockIndexWriter(path) as writer:
        writer.add_zeros(0, np.array([0, 1], np.uint64))
        writer.add(0, row)
        writer.add_zeros(0, np.array([2, 3, 7], np.uint64))
        writer.add_zeros(1, np.array([8], np.uint64))
    index = BlockIndex(path, [])
    assert index.zeros(0).tolist() == [[0, 4], [7, 1]]
    assert index.zeros(1).tolist() == [[8, 1]]
    target = tmp_path / "published"
    write_blocks(path, target)
    assert BlockIndex(target, []).zeros(0).tolist() == [[0, 4], [7, 1]]
    size = BLOCK_BYTES
    check_blocks(target, [(8 * size, size), (9 * size, size)])
    for sizes in ([(7 * size, size), (9 * size, size)], [(8 * size, size)]):
        with pytest.raises(ManifestInvalid, match="zeros is outside"):
            check_blocks(target, sizes)

    def rewritten(zeros: bytes) -> Path:
        with pq.ParquetWriter(tmp_path / "changed", BLOCKS_SCHEMA, compression="zstd") as changed:
            changed.write_table(pq.read_table(path).replace_schema_metadata(BLOCKS_SCHEMA.metadata))
            changed.add_key_value_metadata({KEY: zeros})
        return tmp_path / "changed"

    told = packed([np.array([[0, 0, 4], [0, 7, 1]], np.uint64)])
    check_blocks(rewritten(told), [(8 * size, size)])
    faults = {
        "has a row": packed([np.array([[0, 3, 2]], np.uint64)]),
        "out of order": packed([np.array([[0, 3, 2], [0, 1, 1]], np.uint64)]),
        "cannot be": packed([np.array([[0, 3, 1 << 63]], np.uint64)]),
        "damaged": told[:30] + b"Q" + told[31:],
    }
    for reason, value in faults.items():
        with pytest.raises(ManifestInvalid, match=reason):
            check_blocks(rewritten(value), [(8 * size, size)])
    assert not len(BlockIndex(rewritten(faults["damaged"]), []).zeros(0))
    monkeypatch.setattr("rehost.replication.block_zeros.RUNS_MAX", 1)
    assert unpacked(packed([np.array([[0, 1, 1], [0, 3, 1]], np.uint64)])).tolist() == [[0, 1, 1]]


def test_a_chunk_that_the_store_lost_is_sent_again(disk: Path, store: Store, tmp_path: Path) -> None:
    area = area_of(disk)
    with opened("agent") as session:
        first = take(session, store, area, tmp_path / "1.parquet")
        with Store.open(tmp_path / "empty") as other:
            second = take(session, other, area, tmp_path / "2.parquet", first)
            assert assemble(second.index, 0, other, tmp_path / "out").read_bytes() == disk.read_bytes()
    assert second.report.bytes_new == first.report.bytes_new


def test_a_device_that_is_no_device_is_not_read(disk: Path, store: Store, tmp_path: Path) -> None:
    area = area_of(disk)
    with open_agent(PathConnection(root="/")) as session:
        plain = Area(0, 0, area.size_bytes, "partition", area.path, 0)
        with pytest.raises(SourceAgentFailed, match="block device"):
            AgentBlocks(session).used_blocks(plain, "off")
    with open_agent(PathConnection(root="/")) as session:
        longer = Area(0, 0, area.size_bytes + 1, "partition", area.path, 0, file=True)
        with pytest.raises(SourceAgentFailed, match="smaller"):
            AgentBlocks(session).used_blocks(longer, "off")


def test_areas_cover_a_disk_once(tmp_path: Path) -> None:
    def partition(number: int, start: int, size: int, **more: str) -> Partition:
        return Partition(path=f"/dev/sda{number}", device=f"0_{number}", start=start, size_bytes=size, **more)

    disk = Disk(
        index=0,
        path="/dev/sda",
        size_bytes=100 * MIB,
        table="gpt",
        partitions=(
            partition(2, 10 * MIB, 50 * MIB, filesystem="ext4"),
            partition(1, MIB, 9 * MIB),
            partition(3, 61 * MIB, 38 * MIB, type="0x05"),
            partition(5, 62 * MIB, 37 * MIB),
        ),
    )
    found = areas(disk)
    assert [(a.kind, a.start // MIB, a.size_bytes // MIB, a.path, a.offset // MIB) for a in found] == [
        ("table", 0, 1, "/dev/sda", 0),
        ("partition", 1, 9, "/dev/sda1", 0),
        ("partition", 10, 50, "/dev/sda2", 0),
        ("gap", 60, 2, "/dev/sda", 60),
        ("partition", 62, 37, "/dev/sda5", 0),
        ("table", 99, 1, "/dev/sda", 99),
    ]
    whole = Partition(path="/dev/sdb", device="1_0", start=0, size_bytes=MIB, filesystem="xfs")
    assert [a.kind for a in areas(Disk(index=1, path="/dev/sdb", size_bytes=MIB, partitions=(whole,)))] == ["partition"]


def test_an_unaligned_area_in_the_middle_of_a_disk(disk: Path, store: Store, tmp_path: Path) -> None:
    area = area_of(disk, start=17 * 512, size=3 * MIB + 512)
    raw = disk.read_bytes()[17 * 512 :][: 3 * MIB + 512]
    for kind in ("agent", "image"):
        with opened(kind) as session:
            copy = take(session, store, area, tmp_path / f"{kind}.parquet")
        assert assemble(copy.index, 0, store, tmp_path / "out").read_bytes() == raw


def test_an_index_of_many_rows_is_read_in_order(tmp_path: Path) -> None:
    chance = np.random.default_rng(3)
    numbers = np.sort(chance.choice(1_000_000, 150_000, replace=False)).astype(np.uint64)
    rows = Rows(
        numbers,
        chance.integers(0, 256, (len(numbers), 16), np.uint8),
        chance.integers(0, 256, (len(numbers), 32), np.uint8),
    )
    with BlockIndexWriter(tmp_path / "index") as writer:
        for region in range(3):
            for at in range(0, len(numbers), 40_000):
                writer.add(region, rows.cut(at, at + 40_000))
    index = BlockIndex(tmp_path / "index", [])
    for region in range(3):
        whole = Rows.joined(list(index.rows(region)))
        assert (whole.blocks == rows.blocks).all()
        assert (whole.names == rows.names).all()
    cursor = Cursor(index.rows(1))
    for at in range(0, 1_000_000, 7777):
        asked = np.arange(at, at + 3000, dtype=np.uint64)
        here, found = cursor.take(asked)
        assert (found.blocks == numbers[(numbers >= at) & (numbers < at + 3000)]).all()
        assert (asked[here] == found.blocks).all()


def test_runs_and_blocks_are_each_others_inverse() -> None:
    for numbers in ([], [0], [1, 2, 3, 7, 9, 10]):
        blocks = np.array(numbers, np.uint64)
        assert blocks_of(runs_of(blocks)).tolist() == numbers


# --- converging -----------------------------------------------------------------------------------------------


class Held:
    def __init__(self, early: bool = False) -> None:
        self.early = early

    def ended(self) -> bool:
        return self.early


def test_passes_converge_and_the_last_one_is_made_while_it_is_still(
    disk: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    area = area_of(disk, mount_point="/")
    todo: list[list[int]] = []  # what is written before each pass asks
    frozen = threading.Event()
    asked: list[bool] = []

    def written() -> Mapping[Area, Runs]:
        blocks = todo.pop(0) if todo else []
        with disk.open("r+b") as file:
            for block in blocks:
                file.seek(block * BLOCK_BYTES)
                file.write(b"%d" % len(asked))
        asked.append(frozen.is_set())
        return {area: runs_of(np.array(blocks, np.uint64))}

    @contextlib.contextmanager
    def freeze() -> Iterator[Held]:
        frozen.set()
        yield Held()
        frozen.clear()

    settle, settled = Delivery.settle, []

    def settling(delivery: Delivery) -> None:
        settled.append(frozen.is_set())
        settle(delivery)

    monkeypatch.setattr(Delivery, "settle", settling)
    todo += [[3], [5, 9]]
    with opened("agent") as session:
        done = converge(session, store, [area], tmp_path, parent=None, freeze=freeze, written=written, progress=silent)
        assert asked == [False, True]
        assert settled == [False, False], "the source waited for the store"
        assert assemble(done.copy.index, 0, store, tmp_path / "out").read_bytes() == disk.read_bytes()
        assert done.passes[-1].bytes_changed == 2 * BLOCK_BYTES
        # What was written since the first pass was decided is read by it, though `only` does not name it.
        todo += [[11], []]
        only = {area: runs_of(np.array([4], np.uint64))}
        again = converge(
            session,
            store,
            [area],
            tmp_path,
            parent=BlockIndex(done.copy.path.rename(tmp_path / "parent"), done.copy.regions),
            freeze=freeze,
            written=written,
            only=only,
            progress=silent,
        )
    assert assemble(again.copy.index, 0, store, tmp_path / "out").read_bytes() == disk.read_bytes()
    assert again.passes[0].bytes_changed == BLOCK_BYTES


@pytest.mark.parametrize(("early", "seconds", "freezes"), [("seen", 1000.0, 1), ("lost", 1000.0, 1), ("no", 0.0, 0)])
def test_what_does_not_converge_is_an_error(
    early: str, seconds: float, freezes: int, disk: Path, store: Store, tmp_path: Path
) -> None:
    begun = []

    @contextlib.contextmanager
    def freeze() -> Iterator[Held]:
        begun.append(1)
        yield Held(early == "seen")
        if early == "lost":
            raise SnapshotFreezeLost(host="server", seconds="10.0")

    with opened("agent") as session, pytest.raises(NotConverging):
        converge(
            session,
            store,
            [area_of(disk, mount_point="/")],
            tmp_path,
            parent=None,
            freeze=freeze,
            written=None,
            still_seconds=seconds,
            progress=silent,
        )
    assert len(begun) == freezes


# --- lies -----------------------------------------------------------------------------------------------------

HELLO = "frame(HELLO, json.dumps(HELLO_BODY).encode())\n"
MAP = HELLO + "hear_until(80)\n"
END = "frame(21, json.dumps(dict(rule='ext4', used_bytes=5, filesystem='ext4', reason='')).encode())\n"
AREA = Area(0, 0, 10 * BLOCK_BYTES, "partition", "/dev/x", 0)


def runs(*pairs: tuple[int, int]) -> str:
    flat = [number for pair in pairs for number in pair]
    return f"frame(20, pack(struct.pack('<{len(flat)}Q', *{flat})))\n"


def blocks_session(session: AgentSession) -> AgentBlocks:
    return AgentBlocks(session)


def test_a_true_map_is_taken() -> None:
    with lying_agent(MAP + runs((0, 2), (5, 1)) + runs((6, 4)) + END) as session:
        used = blocks_session(session).used_blocks(AREA, "off")
    assert used.runs.tolist() == [[0, 2], [5, 1], [6, 4]]


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("runs out of order", runs((5, 1), (0, 2)) + END),
        ("runs over each other", runs((0, 3), (2, 1)) + END),
        ("runs over each other in two frames", runs((0, 3)) + runs((2, 1)) + END),
        ("a run beyond the end", runs((9, 2)) + END),
        ("a run that wraps around", runs((9, (1 << 64) - 5)) + END),
        ("an empty run", runs((1, 0)) + END),
        ("a frame without runs", "frame(20, pack(b''))\n" + END),
        ("half a run", "frame(20, pack(b'12345678'))\n" + END),
        ("an unknown rule", END.replace("'ext4', used", "'guess', used")),
        ("more in use than there is", END.replace("=5", "=1 << 40")),
        ("a number of another type", END.replace("=5", "='5'")),
        ("another frame", "frame(22, b'')\n"),
    ],
)
def test_a_lie_in_a_map_is_seen(name: str, lie: str) -> None:
    with lying_agent(MAP + lie) as session, pytest.raises(SourceProtocol):
        blocks_session(session).used_blocks(AREA, "off")


READ = HELLO + (
    "hear_until(83)\n"
    "H = b'h' * 16\n"
    "def found(number, states, hashes=b'', names=b'', new=None):\n"
    "    new = len(names) // 32 if new is None else new\n"
    "    frame(22, struct.pack('>QII', number, len(states), new) + bytes(states) + hashes + names)\n"
    "def content(raw, count=1, codec=0, length=None):\n"
    "    frame(23, struct.pack('>I', count) + pack(raw, codec, length))\n"
    "RAW = b'x' * 65536\n"
    "NAME = hashlib.sha256(RAW).digest()\n"
)
TRUTH = READ + "found(0, [2, 1, 0], H, NAME); hear_until(71)\ncontent(RAW)\nframe(24, b'{}')\n"


def _read(lie: str) -> list[Bundle]:
    arrived: list[Bundle] = []
    known = np.zeros((3, 16), np.uint8)
    known[2] = 7
    pieces = [Piece(np.array([1, 2, 8], np.uint64), known)]
    with lying_agent(lie) as session:
        wanted = lambda names: [True] * len(names)  # noqa: E731
        batches = list(AgentBlocks(session).read_blocks(AREA, "xxh3_128", pieces, wanted, arrived.append))
    assert np.concatenate([batch.blocks for batch in batches]).tolist() == [1, 2, 8]
    assert [batch.states.tolist() for batch in batches] == [[NEW, 1, 0]]
    return arrived


def test_true_blocks_are_taken() -> None:
    (bundle,) = _read(TRUTH)
    assert bundle.raw() == b"x" * 65536


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        ("a batch out of turn", TRUTH.replace("found(0", "found(1")),
        ("more blocks than were asked for", TRUTH.replace("[2, 1, 0]", "[2, 1, 0, 1]")),
        ("fewer blocks than were asked for", TRUTH.replace("[2, 1, 0]", "[2, 1]")),
        ("no blocks", READ + "found(0, [])"),
        ("the same as what is not known", TRUTH.replace("[2, 1, 0]", "[2, 0, 0]")),
        ("an unknown state", TRUTH.replace("[2, 1, 0]", "[2, 3, 0]")),
        ("a new block without a name", TRUTH.replace("[2, 1, 0], H, NAME", "[2, 2, 0], H, NAME")),
        ("another number of new blocks", TRUTH.replace("H, NAME)", "H, NAME, 2)")),
        ("a batch cut short", READ + "frame(22, b'123')"),
        ("a number without end", READ + "frame(22, struct.pack('>QII', 0, 3, 1 << 31) + b'abc')"),
        ("content that nobody asked for", READ + "content(RAW)"),
        ("more chunks than were asked for", TRUTH.replace("content(RAW)", "content(RAW, 2)")),
        ("no chunks", TRUTH.replace("content(RAW)", "content(RAW, 0)")),
        ("content of another length", TRUTH.replace("content(RAW)", "content(RAW[1:])")),
        ("an unknown codec", TRUTH.replace("content(RAW)", "content(RAW, codec=9)")),
        ("an end before the content", TRUTH.replace("content(RAW)\n", "")),
        ("an early end", READ + "frame(24, b'{}')"),
        ("another frame", READ + "frame(5, b'{}')"),
    ],
)
def test_a_lie_about_blocks_is_seen(name: str, lie: str) -> None:
    with pytest.raises(SourceProtocol):
        _read(lie)
    _read(TRUTH)


def test_content_of_another_name_never_reaches_the_store(store: Store, tmp_path: Path) -> None:
    lie = MAP + runs((0, 10)) + END + TRUTH.removeprefix(HELLO).replace("[2, 1, 0]", "[2] + [1] * 9")
    with lying_agent(lie.replace("content(RAW)", "content(b'y' + RAW[1:])")) as session:
        with pytest.raises(SourceProtocol, match="SHA-256"):
            take(AgentBlocks(session), store, AREA, tmp_path / "1.parquet")
    assert store.has([hashlib.sha256(b"y" + b"x" * 65535).digest()]) == [False]

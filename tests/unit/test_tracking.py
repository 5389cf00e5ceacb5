"""What is made of a tracker's bitmaps, and what a tracker may not say."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from rehost.agent.tracing import BITMAPS_BYTES, BLOCK_BYTES, Bitmap, BlockTracer, Disk, _Discards, block_bytes_of
from rehost.errors import SourceProtocol
from rehost.source.tracking import Full, Tracked, Tracking, Written
from tests.support.wire import lying_agent


def test_a_bitmap_holds_each_block_that_a_write_touches() -> None:
    """Any ranges, also such as reach past the end, against a set."""
    chance = random.Random(1)
    size = 1000 * BLOCK_BYTES + 512
    bitmap, expected = Bitmap(size, BLOCK_BYTES), set()
    for _ in range(300):
        sector, count = chance.randrange(size // 512 + 200), chance.choice([0, 1, 8, 128, 129, 5000])
        bitmap.mark(sector, count)
        expected |= {at // 128 for at in range(sector, min(sector + count, size // 512))}
    bits = np.unpackbits(np.frombuffer(bitmap.take(), np.uint8), bitorder="little")
    assert set(np.flatnonzero(bits).tolist()) == expected
    assert not any(bitmap.bits)


@pytest.mark.parametrize("start", [0, 512 * 63, 1 << 20, (1 << 20) + 512, 3 * BLOCK_BYTES - 512])
@pytest.mark.parametrize("coarse", [1, 4])
def test_blocks_of_a_stretch_of_a_disk(start: int, coarse: int) -> None:
    """Whatever lies where: each block of the stretch that was written to is named, and none that no set bit touches."""
    chance = random.Random(start)
    size, length = 64 << 20, (20 << 20) + 1536
    unit = coarse * BLOCK_BYTES
    bitmap = Bitmap(size, unit)
    sectors = [chance.randrange(size // 512) for _ in range(40)] + [start // 512, (start + length) // 512 - 1]
    for sector in sectors:
        bitmap.mark(sector, 1)
    told = Written(Tracked("0" * 32, None, unit, (("sda", size),)), (bitmap.take(),))
    found = set(told.blocks("sda", start, length).tolist())
    inside = [sector * 512 - start for sector in sectors if start <= sector * 512 < start + length]
    assert found >= {at // BLOCK_BYTES for at in inside}
    touched = set()
    for sector in sectors:
        low, high = sector * 512 // unit * unit - start, sector * 512 // unit * unit + unit - start
        if high > 0 and low < length:
            touched |= set(range(max(low, 0) // BLOCK_BYTES, -(-min(high, length) // BLOCK_BYTES)))
    assert found == touched
    runs = told.runs("sda", start, length).tolist()
    assert [block for first, count in runs for block in range(first, first + count)] == sorted(found)
    assert all(one[0] + one[1] < two[0] for one, two in itertools.pairwise(runs))
    assert told.runs("sda", size - 512, 0).shape == (0, 2)


def test_bitmaps_stay_small() -> None:
    """A bit stands for more on large disks."""
    small, large = (Disk("sda", 1, size, "") for size in (1 << 40, 20 << 40))
    assert block_bytes_of([small]) == BLOCK_BYTES
    assert (small.size_bytes + large.size_bytes) // block_bytes_of([small, large]) // 8 <= BITMAPS_BYTES


def _lie(state: str, told: str, bits: str) -> str:
    """An agent that answers START and TRACE so."""
    return f"""
frame(HELLO, json.dumps(HELLO_BODY).encode())
hear_until(100)
STATE = dict(version=1, generation="a" * 32, base=None, block_bytes=65536, disks=[["sda", 1 << 20, "x"]])
STATE.update({state})
frame(40, json.dumps(STATE).encode())
hear_until(100)
frame(40, json.dumps(dict(dict(bits=[2], lost=None), **{told})).encode())
frame(41, {bits})
"""


@pytest.mark.parametrize(
    "state",
    [
        "generation='..'",
        "generation=None",
        "base='x' * 1000",
        "block_bytes=65537",
        "block_bytes=512",
        "block_bytes=-65536",
        "disks=[['sdb', 1 << 20, 'x']]",
        "disks=[]",
        "disks=[['sda', 0, 'x']]",
        "disks=[['sda', 1 << 60, 'x']]",
        "disks=[['sda', 1 << 49, 'x']]",
        "disks=[['sda']]",
        "disks=7",
    ],
)
def test_a_tracker_that_cannot_be(state: str) -> None:
    """Is a violation when it is started."""
    with lying_agent(_lie(state, "{}", "b''")) as session, pytest.raises(SourceProtocol):
        Tracking(session, None).start(["sda"])


@pytest.mark.parametrize(
    ("told", "bits"),
    [
        ("dict(bits=[3])", "pack(b'abc')"),
        ("dict(bits=None)", "pack(b'ab')"),
        ("dict(lost=3)", "pack(b'ab')"),
        ("{}", "pack(b'abc')"),
        ("{}", "pack(b'a')"),
        ("{}", "pack(zlib.compress(b'a' * 1000000), 1, 2)"),
    ],
)
def test_bitmaps_that_cannot_be(told: str, bits: str) -> None:
    """Are a violation when they are taken."""
    with lying_agent(_lie("{}", told, bits)) as session:
        tracking = Tracking(session, None)
        assert not isinstance(tracking.start(["sda"]), Full)
        with pytest.raises(SourceProtocol):
            tracking.take()


def test_words_of_a_tracker_are_printable() -> None:
    """A reason ends in a report."""
    with lying_agent(_lie("failed='\\x1b[2J' + 'x' * 5000", "{}", "b''")) as session:
        told = Tracking(session, None).start(["sda"])
    assert isinstance(told, Full) and len(told.reason) < 400 and "\x1b" not in told.reason


def test_discards_that_one_request_joins_are_all_named_again_when_it_completes() -> None:
    """The completion tells the first range and the length of all; none is forgotten while one may be under way."""
    tracer = BlockTracer.__new__(BlockTracer)  # without the kernel: no disk here merges discards
    tracer.bitmaps, tracer._discards, tracer._pipes = [Bitmap(1 << 30, BLOCK_BYTES)], [_Discards()], []
    tracer._discard(0, 128 * 10, 128, queued=True)
    tracer._discard(0, 128 * 900, 256, queued=True)
    tracer._discard(0, 128 * 500, 128, queued=True)
    tracer.bitmaps[0].take()
    tracer._discard(0, 128 * 10, 384, queued=False)
    assert _named(tracer) == {10, 500, 900, 901}
    tracer.drain()
    tracer._discard(0, 128 * 500, 128, queued=False)
    assert _named(tracer) == {10, 500, 900, 901}
    tracer.drain()
    tracer._discard(0, 128 * 7, 128, queued=False)
    assert _named(tracer) == set()


def _named(tracer: BlockTracer) -> set[int]:
    bits = np.unpackbits(np.frombuffer(tracer.bitmaps[0].take(), np.uint8), bitorder="little")
    return set(np.flatnonzero(bits).tolist())

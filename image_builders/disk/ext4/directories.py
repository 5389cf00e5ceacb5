"""Directories: which entry goes where, and the blocks that hold them.

A directory that fits one block is that block. A larger one is hashed (dir_index): block 0 is the root of the index,
then come the index nodes, where there are more leaves than the root points at, then the leaves in the order of their
hashes. Leaves and nodes are filled to seven eighths, so that the first new names of the guest split nothing.

Formats: Documentation/filesystems/ext4/directory.rst of the Linux kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from image_builders.disk.ext4.arrays import BLOCK, Bytes, Numbers, Words, before, copy_strings
from image_builders.disk.ext4.entries import LOST_FOUND_INODE, Entries
from image_builders.disk.ext4.htree import hash_names

_DOTS = 24  # bytes of "." and ".." before the entries of a one-block directory
_LEAF_FILL = BLOCK * 7 // 8
_ROOT_LIMIT = (BLOCK - 32) // 8  # entries of the index's root
_NODE_LIMIT = (BLOCK - 8) // 8
_NODE_FILL = _NODE_LIMIT * 7 // 8
_LOST_FOUND_BLOCKS = 4  # kept free for e2fsck
_HALF_MD4 = 1
_DIRECTORY = 2  # file type code


@dataclass(frozen=True)
class DirectoryPlan:
    """Where everything in the directory area lies. Positions are bytes from its start, blocks count from there too.

    Arrays of directories have one element a directory, in the order of rows; arrays of names one a row but the
    root's, in the order of positions.
    """

    rows: Numbers  # of the directories
    first_blocks: Numbers
    block_counts: Numbers
    indexed: Numbers  # 1 where hashed
    entry_rows: Numbers
    positions: Numbers
    record_lengths: Numbers
    index_words: dict[int, Words]  # block: the words of an index block after its header
    padding: Numbers  # blocks without an entry: those that lost+found has in reserve
    blocks: int


def most_directory_blocks(entries: Entries) -> int:
    """An upper bound of the blocks of all directories, whatever the hash seed is."""
    lengths, counts_of = _record_lengths(entries), np.bincount(entries.parents[1:], minlength=len(entries.parents))
    rows = entries.of_type(0o040000)
    used = np.bincount(entries.parents[1:], weights=lengths[1:], minlength=len(entries.parents))[rows].astype(np.int64)
    large = used + _DOTS > BLOCK
    # A leaf is closed only when the next entry, 264 bytes at most, does not fit any more; and holds 13 at least.
    leaves = np.minimum(used // (_LEAF_FILL - 263) + 1, counts_of[rows])
    nodes = -(-leaves // _NODE_FILL) + 1
    return int(np.where(large, 1 + nodes + leaves, 1).sum()) + _LOST_FOUND_BLOCKS


def _record_lengths(entries: Entries) -> Numbers:
    return 8 + (entries.name_lengths + 3) // 4 * 4


def plan_directories(entries: Entries, seed: bytes) -> DirectoryPlan:
    """Place every name. Raises BuildUnsupported for a directory that an index of two levels cannot hold."""
    order = np.argsort(entries.parents[1:], kind="stable") + 1
    lengths = _record_lengths(entries)[order]
    parents = entries.parents[order]
    rows = entries.of_type(0o040000)
    first = np.searchsorted(parents, rows)
    last = np.searchsorted(parents, rows, "right")
    total = np.append(0, np.cumsum(lengths))
    used = total[last] - total[first]
    indexed = (used + _DOTS > BLOCK).astype(np.int64)

    # One block: entries follow one another, the last one reaches to the block's end.
    directory = np.repeat(np.arange(len(rows)), last - first)
    within = _DOTS + total[:-1] - total[first][directory]
    blocks_within = np.zeros(len(order), np.int64)
    is_last = np.zeros(len(order), np.bool_)
    is_last[last[(last > first)] - 1] = True
    counts = np.ones(len(rows), np.int64)
    counts[entries.inodes[rows] == LOST_FOUND_INODE] = _LOST_FOUND_BLOCKS

    index_of: dict[int, tuple[Words, int]] = {}
    hashed = np.flatnonzero(indexed[directory])
    if len(hashed):
        major, minor = hash_names(
            entries.paths.data, entries.name_starts[order[hashed]], entries.name_lengths[order[hashed]], seed
        )
        by_hash = np.lexsort((minor, major, directory[hashed]))
        order[hashed], lengths[hashed], major = order[hashed[by_hash]], lengths[hashed[by_hash]], major[by_hash]
        ends = np.cumsum(lengths[hashed])
        at = 0
        for number in np.flatnonzero(indexed).tolist():
            size = int(last[number] - first[number])
            leaves = _leaves(ends, at, at + size)
            here = slice(int(first[number]), int(last[number]))
            leaf = np.repeat(np.arange(len(leaves)), np.diff(np.append(leaves, at + size)))
            within[here] = ends[at : at + size] - lengths[here] - (ends[leaves] - lengths[hashed[leaves]])[leaf]
            is_last[here] = np.append(leaf[1:] != leaf[:-1], True)
            keys = major[leaves].copy()
            straddling = np.append(False, major[leaves[1:] - 1] == keys[1:])
            keys[straddling] |= np.uint32(1)
            nodes = 0 if len(leaves) <= _ROOT_LIMIT else -(-len(leaves) // _NODE_FILL)
            if nodes > _ROOT_LIMIT:
                entries.refuse(int(rows[number]), "it has more names than a directory of ext4 can hold")
            blocks_within[here] = 1 + nodes + leaf
            counts[number] = 1 + nodes + len(leaves)
            index_of[number] = (keys, nodes)
            at += size

    first_blocks = before(counts)
    positions = (first_blocks[directory] + blocks_within) * BLOCK + within
    record_lengths = np.where(is_last, BLOCK - within, lengths)
    index_words: dict[int, Words] = {}
    for number, (keys, nodes) in index_of.items():
        _index_blocks(index_words, int(first_blocks[number]), keys, nodes)
    return DirectoryPlan(
        rows=rows,
        first_blocks=first_blocks,
        block_counts=counts,
        indexed=indexed,
        entry_rows=order,
        positions=positions,
        record_lengths=record_lengths,
        index_words=index_words,
        padding=_padding(first_blocks, counts, indexed),
        blocks=int(counts.sum()),
    )


def _padding(first_blocks: Numbers, counts: Numbers, indexed: Numbers) -> Numbers:
    spare = np.where(indexed > 0, 0, counts - 1)
    lost = np.repeat(np.arange(len(counts)), spare)
    return first_blocks[lost] + 1 + np.arange(len(lost)) - before(spare)[lost]


def _leaves(ends: Numbers, at: int, end: int) -> Numbers:
    """The first entry of each leaf, for entries at..end whose record lengths end at these sums."""
    found = []
    begin = int(ends[at - 1]) if at else 0
    while at < end:
        found.append(at)
        at = min(end, int(np.searchsorted(ends, begin + _LEAF_FILL, "right")))
        begin = int(ends[at - 1])
    return np.asarray(found, np.int64)


def _index_blocks(index_words: dict[int, Words], first_block: int, keys: Words, nodes: int) -> None:
    """The root (and the nodes) of one directory's index. Keys are the hashes of its leaves' first names."""
    blocks = np.arange(1 + nodes, 1 + nodes + len(keys), dtype=np.uint32)
    if nodes:
        parts = np.array_split(np.arange(len(keys)), nodes)
        for number, part in enumerate(parts):
            index_words[first_block + 1 + number] = _count_and_entries(keys[part], blocks[part], _NODE_LIMIT)
        firsts = [int(part[0]) for part in parts]
        keys, blocks = keys[firsts], np.arange(1, 1 + nodes, dtype=np.uint32)
    levels = 1 if nodes else 0
    info = np.asarray([0, _HALF_MD4 | 8 << 8 | levels << 16], np.uint32)
    index_words[first_block] = np.concatenate([info, _count_and_entries(keys, blocks, _ROOT_LIMIT)])


def _count_and_entries(keys: Words, blocks: Words, limit: int) -> Words:
    """Pairs of hash and block; the place of the first hash, which is implied, holds limit and count."""
    words = np.stack((keys, blocks), axis=1)
    words[0, 0] = limit | len(keys) << 16
    return words.reshape(-1).astype(np.uint32)


def directory_slab(entries: Entries, plan: DirectoryPlan, first: int, count: int) -> Bytes:
    """The bytes of so many blocks of the directory area."""
    slab = np.zeros(count * BLOCK, np.uint8)
    words = slab.view("<u4")
    begin, end = first * BLOCK, (first + count) * BLOCK

    def entry(at: Numbers, inode: Numbers, record: Numbers, length: Numbers, code: Numbers) -> None:
        words[at // 4] = inode
        words[at // 4 + 1] = record | length << 16 | code << 24

    low, high = np.searchsorted(plan.positions, (begin, end))
    rows = plan.entry_rows[low:high]
    at = plan.positions[low:high] - begin
    lengths = entries.name_lengths[rows]
    entry(at, entries.inodes[rows], plan.record_lengths[low:high], lengths, entries.type_codes[rows].astype(np.int64))
    copy_strings(slab, at + 8, entries.paths.data, entries.name_starts[rows], lengths)

    low, high = np.searchsorted(plan.first_blocks, (first, first + count))
    rows = plan.rows[low:high]
    at = (plan.first_blocks[low:high] - first) * BLOCK
    one, two, code = (np.full(len(at), number, np.int64) for number in (1, 2, _DIRECTORY))
    entry(at, entries.inodes[rows], one * 12, one, code)
    alone = np.searchsorted(plan.positions, plan.first_blocks[low:high] * BLOCK + BLOCK) == np.searchsorted(
        plan.positions, plan.first_blocks[low:high] * BLOCK
    )
    entry(at + 12, entries.inodes[entries.parents[rows]], np.where(alone, BLOCK - 12, 12), two, code)
    slab[at + 8] = ord(".")
    slab[at + 20] = slab[at + 21] = ord(".")

    padding = plan.padding[(plan.padding >= first) & (plan.padding < first + count)]
    words[(padding - first) * (BLOCK // 4) + 1] = BLOCK
    roots = set(plan.first_blocks[low:high].tolist())
    for block, content in _within(plan.index_words, first, first + count):
        start = (block - first) * (BLOCK // 4)
        if block in roots:
            start += 6
        else:
            words[start + 1] = BLOCK  # an empty entry over the whole block, for readers that know no index
            start += 2
        words[start : start + len(content)] = content
    return slab


def _within(index_words: dict[int, Words], first: int, last: int) -> list[tuple[int, Words]]:
    if len(index_words) > last - first:
        return [(block, index_words[block]) for block in range(first, last) if block in index_words]
    return [(block, content) for block, content in index_words.items() if first <= block < last]

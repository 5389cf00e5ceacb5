"""What lies where: runs of blocks become extents, extents become what an inode points at.

Up to four extents lie in the inode. More of them go into blocks of 340, and these into further levels as needed.
Format: Documentation/filesystems/ext4/ifork.rst of the Linux kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from image_builders.disk.ext4.arrays import BLOCK, Numbers, Words, before
from image_builders.disk.ext4.geometry import Geometry

_MAGIC = 0xF30A
_IN_INODE = 4
_IN_BLOCK = (BLOCK - 12) // 12
_LONGEST = 32_768  # blocks of an extent


@dataclass(frozen=True)
class Runs:
    """Stretches of a file's blocks, one element a stretch: blocks logical.. lie at ordinals ordinal.. ."""

    inodes: Numbers
    logical: Numbers
    ordinals: Numbers
    lengths: Numbers

    @staticmethod
    def joined(parts: list[Runs]) -> Runs:
        return Runs(
            *(
                np.concatenate([getattr(p, name) for p in parts])
                for name in ("inodes", "logical", "ordinals", "lengths")
            )
        )


@dataclass(frozen=True)
class Extents:
    """Extents sorted by inode and logical block, and the blocks of the trees that hold them."""

    inodes: Numbers
    logical: Numbers
    physical: Numbers
    lengths: Numbers
    firsts: Numbers  # inode number: its first extent; one more at the end
    deep: dict[int, int]  # inode number: ordinal of its first tree block
    tree_blocks: int
    geometry: Geometry

    def roots(self, first: int, last: int) -> Words:
        """The 60 bytes in each of the inodes first..last-1, as words, shape (inodes, 15)."""
        counts = np.diff(self.firsts[first : last + 1])
        words = np.zeros((last - first, 15), np.uint32)
        shown = np.minimum(counts, _IN_INODE)
        words[:, 0] = _MAGIC | shown << 16
        words[:, 1] = _IN_INODE
        for slot in range(_IN_INODE):
            rows = np.flatnonzero((counts > slot) & (counts <= _IN_INODE))
            at = self.firsts[first + rows] + slot
            words[rows, 3 + 3 * slot] = self.logical[at]
            words[rows, 4 + 3 * slot] = self.lengths[at]
            words[rows, 5 + 3 * slot] = self.physical[at]
        for inode in (first + np.flatnonzero(counts > _IN_INODE)).tolist():
            *_, root = self._levels(inode)
            root_words = _node(*root[0], _IN_INODE)
            words[inode - first, :] = 0
            words[inode - first, : len(root_words)] = root_words
        return words

    def trees(self) -> Iterator[tuple[int, bytes]]:
        """(ordinal, content) of every tree block, in order."""
        for inode, ordinal in self.deep.items():
            *levels, _ = self._levels(inode)
            for level in levels:
                for triples, depth in level:
                    content = _node(triples, depth, _IN_BLOCK).astype("<u4").tobytes()
                    yield ordinal, content + bytes(BLOCK - len(content))
                    ordinal += 1

    def tree_count(self, inode: int) -> int:
        """How many tree blocks the inode has."""
        return int(tree_blocks(np.diff(self.firsts[inode : inode + 2]))[0])

    def _levels(self, inode: int) -> list[list[tuple[Words, int]]]:
        """The nodes of an inode's tree, leaves first; the last level is the root alone. A node: (triples, depth)."""
        here = slice(int(self.firsts[inode]), int(self.firsts[inode + 1]))
        triples = np.stack((self.logical[here], self.lengths[here], self.physical[here]), axis=1).astype(np.uint32)
        ordinal, depth = self.deep[inode], 0
        levels = []
        while len(triples) > _IN_INODE:
            nodes = [(triples[at : at + _IN_BLOCK], depth) for at in range(0, len(triples), _IN_BLOCK)]
            levels.append(nodes)
            places = self.geometry.physical(np.arange(ordinal, ordinal + len(nodes), dtype=np.int64))
            ordinal, depth = ordinal + len(nodes), depth + 1
            # An index entry is logical block, low half of the node's block, high half (never needed).
            triples = np.stack(
                (np.asarray([node[0, 0] for node, _ in nodes]), places, np.zeros(len(nodes), np.int64)), axis=1
            ).astype(np.uint32)
        return [*levels, [(triples, depth)]]


def _node(triples: Words, depth: int, limit: int) -> Words:
    header = np.asarray([_MAGIC | len(triples) << 16, limit | depth << 16, 0], np.uint32)
    return np.concatenate((header, triples.reshape(-1)))


def tree_blocks(extents: Numbers) -> Numbers:
    """How many tree blocks files with so many extents need."""
    total = np.zeros(len(extents), np.int64)
    level = extents
    while (level > _IN_INODE).any():
        level = np.where(level > _IN_INODE, -(-level // _IN_BLOCK), 0)
        total += level
    return total


def most_tree_blocks(inodes: Numbers, lengths: Numbers) -> int:
    """An upper bound of the tree blocks of runs of such lengths, were no run ever cut by metadata."""
    if len(inodes) == 0:
        return 0
    _, inverse = np.unique(inodes, return_inverse=True)
    return int(tree_blocks(np.bincount(inverse, weights=-(-lengths // _LONGEST)).astype(np.int64)).sum())


def extents_of(runs: Runs, geometry: Geometry, inode_count: int, next_ordinal: int) -> Extents:
    """Cut runs at metadata and at the longest extent, and give tree blocks the ordinals from `next_ordinal` on."""
    limits = geometry.run_ordinals
    first = np.searchsorted(limits, runs.ordinals, "right") - 1
    last = np.searchsorted(limits, runs.ordinals + runs.lengths - 1, "right") - 1
    pieces = last - first + 1
    source = np.repeat(np.arange(len(pieces)), pieces)
    free_run = first[source] + np.arange(len(source)) - before(pieces)[source]
    begin = np.maximum(runs.ordinals[source], limits[free_run])
    end = np.minimum(runs.ordinals[source] + runs.lengths[source], limits[free_run + 1])

    parts = -(-(end - begin) // _LONGEST)
    piece = np.repeat(np.arange(len(parts)), parts)
    offset = (np.arange(len(piece)) - before(parts)[piece]) * _LONGEST
    begin = begin[piece] + offset
    end = np.minimum(end[piece], begin + _LONGEST)
    source = source[piece]

    inodes = runs.inodes[source]
    order = np.argsort(inodes, kind="stable")
    inodes, source, begin, end = inodes[order], source[order], begin[order], end[order]
    counts = np.bincount(inodes, minlength=inode_count)
    blocks = tree_blocks(counts)
    ordinals = next_ordinal + before(blocks)
    deep = np.flatnonzero(blocks)
    return Extents(
        inodes=inodes,
        logical=runs.logical[source] + begin - runs.ordinals[source],
        physical=geometry.physical(begin),
        lengths=end - begin,
        firsts=np.append(0, np.cumsum(counts)),
        deep=dict(zip(deep.tolist(), ordinals[deep].tolist(), strict=True)),
        tree_blocks=int(blocks.sum()),
        geometry=geometry,
    )

"""The hash of indexed directories: half MD4 over signed characters, for a whole column of names at once.

Source: fs/ext4/hash.c of the Linux kernel (str2hashbuf_signed, half_md4_transform).
"""

from __future__ import annotations

import numpy as np

from image_builders.disk.ext4.arrays import COPY_ROWS, Bytes, Numbers, Words

_CHUNK = 32  # bytes of a name that one transformation takes
_END_OF_DIRECTORY = np.uint32(0x7FFFFFFF << 1 & 0xFFFFFFFF)
_ROUNDS = (
    (0, (0, 1, 2, 3, 4, 5, 6, 7), (3, 7, 11, 19)),
    (0x5A827999, (1, 3, 5, 7, 0, 2, 4, 6), (3, 5, 9, 13)),
    (0x6ED9EBA1, (3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15)),
)


def hash_names(data: Bytes, starts: Numbers, lengths: Numbers, seed: bytes) -> tuple[Words, Words]:
    """(hash, minor hash) of every name data[starts[i]:][:lengths[i]]; the seed has 16 bytes and is not all zeros."""
    major = np.empty(len(starts), np.uint32)
    minor = np.empty(len(starts), np.uint32)
    for first in range(0, len(starts), COPY_ROWS):
        last = first + COPY_ROWS
        major[first:last], minor[first:last] = _hash_batch(data, starts[first:last], lengths[first:last], seed)
    return major, minor


def _hash_batch(data: Bytes, starts: Numbers, lengths: Numbers, seed: bytes) -> tuple[Words, Words]:
    state = np.repeat(np.frombuffer(seed, "<u4").astype(np.uint32)[:, None], len(starts), axis=1)
    for done in range(0, int(lengths.max(initial=0)), _CHUNK):
        rows = np.flatnonzero(lengths > done)
        words = _words(data, starts[rows] + done, lengths[rows] - done)
        state[:, rows] = _transform(state[:, rows], words)
    major = state[1] & np.uint32(0xFFFFFFFE)
    return np.where(major == _END_OF_DIRECTORY, _END_OF_DIRECTORY - np.uint32(2), major), state[2]


def _words(data: Bytes, starts: Numbers, lengths: Numbers) -> Words:
    """Eight words of each name: bytes are added signed, what is missing is filled with the length."""
    columns = np.arange(_CHUNK, dtype=np.int64)
    there = columns < lengths[:, None]
    index = np.minimum(starts[:, None] + columns, len(data) - 1)
    signed = data[index].view(np.int8).astype(np.int32).view(np.uint32)
    pad = lengths.astype(np.uint32) * np.uint32(0x01010101)
    words = np.empty((8, len(starts)), np.uint32)
    for word in range(8):
        value = pad.copy()
        for column in range(4 * word, 4 * word + 4):
            value = np.where(there[:, column], (value << np.uint32(8)) + signed[:, column], value)
        words[word] = value
    return words


def _transform(state: Words, words: Words) -> Words:
    a, b, c, d = state
    for number, (constant, order, shifts) in enumerate(_ROUNDS):
        for step in range(8):
            if number == 0:
                mixed = d ^ (b & (c ^ d))
            elif number == 1:
                mixed = (b & c) + ((b ^ c) & d)
            else:
                mixed = b ^ c ^ d
            a = a + mixed + words[order[step]] + np.uint32(constant)
            shift = shifts[step % 4]
            a = (a << np.uint32(shift)) | (a >> np.uint32(32 - shift))
            a, b, c, d = d, a, b, c
    result: Words = state + np.stack((a, b, c, d))
    return result

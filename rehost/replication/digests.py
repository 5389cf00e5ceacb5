"""Digests of whole columns: 64 bits a row, for telling apart what stands in no order and is too much to keep.

Each process draws its own key, so nobody can make values that differ come out equal, and no digest means anything
outside the process that made it.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_KEY = np.uint64(secrets.randbits(64))


def start(rows: int) -> np.ndarray:
    """The digests of nothing yet."""
    return np.full(rows, _KEY)


def mixed(digests: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The digests with one more column in them.

    SplitMix64's finalizer (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) over a sum
    with the key: a bijection that spreads every bit.
    """
    bits = (digests ^ numbers.astype(np.uint64)) + _KEY
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))


def of_binary(values: pa.Array) -> np.ndarray:
    """A digest of each value; a null's is 0. Made once for each value that occurs."""
    coded = values.dictionary_encode()
    distinct = np.array([0, *(_of_bytes(value) for value in coded.dictionary.to_pylist())], np.uint64)
    return np.asarray(distinct[1 + pc.fill_null(coded.indices, -1).to_numpy(zero_copy_only=False)])


def _of_bytes(value: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(value, digest_size=8, key=_KEY.tobytes()).digest(), "little")

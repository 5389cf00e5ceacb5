"""How the store compresses what arrives uncompressed, or by another method than its own."""

from __future__ import annotations

import threading

import zstandard

from rehost.replication.bundles import RAW, ZSTD

DEFAULT_LEVEL = 3

_WORTH_IT = 0.97  # content that does not shrink below this share is stored as it is
_SAMPLED_FROM = 256 << 10  # shorter content costs less to compress than to judge
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # pieces spread over the content that stand for all of it
_local = threading.local()  # zstd contexts may not be shared between threads


def compress(raw: bytes, level: int) -> tuple[int, bytes]:
    """(codec, payload) of content: one zstd frame of that level (1 to 9), or the bytes where that gains too little.

    Of longer content a sample is tried at level 1 first: what is compressed or encrypted already costs next to nothing.
    A larger window or long-distance matching gains nothing within a bundle, which is no longer than level 3's window.
    """
    if len(raw) >= _SAMPLED_FROM:
        step = len(raw) // _SAMPLES
        sample = b"".join(raw[at : at + _SAMPLE_BYTES] for at in range(0, step * _SAMPLES, step))
        if len(_compressor(1).compress(sample)) >= len(sample) * _WORTH_IT:
            return RAW, raw
    packed = _compressor(level).compress(raw)
    return (ZSTD, packed) if len(packed) < len(raw) * _WORTH_IT else (RAW, raw)


def _compressor(level: int) -> zstandard.ZstdCompressor:
    compressors: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in compressors:
        compressors[level] = zstandard.ZstdCompressor(level=level)
    return compressors[level]

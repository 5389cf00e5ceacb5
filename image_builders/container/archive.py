"""The image as one tar file that is an OCI image layout and at the same time what `docker load` takes.

The layer comes first, because its name is its digest, which is known at its end: its header is then written again.
docs/container-image.md has the members.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from image_builders.container.layer import BLOCK

_PIECE = 1 << 20
_OCTAL_LIMIT = 1 << 33
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Archive:
    """What was written."""

    layer_digest: str
    layer_size: int  # bytes
    config_digest: str  # the image id of an engine with its own image store
    manifest_digest: str  # the image id of an engine that keeps images in containerd


def write_archive(
    path: Path,
    layer: Iterator[bytes],
    config_of: Callable[[str], dict[str, Any]],
    reference: str,
    on_bytes: Callable[[int], None],
) -> Archive:
    """Write the archive; it appears under its name when it is whole.

    `config_of` gives the image's configuration for the layer's digest; `on_bytes` is told the bytes of the layer
    written so far. OSError of the disk goes through.
    """
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as file:
            archive = _write(file, layer, config_of, reference, on_bytes)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return archive


def _write(
    file: BinaryIO,
    layer: Iterator[bytes],
    config_of: Callable[[str], dict[str, Any]],
    reference: str,
    on_bytes: Callable[[int], None],
) -> Archive:
    file.write(bytes(BLOCK))
    digest, size = hashlib.sha256(), 0
    for piece in layer:
        digest.update(piece)
        file.write(piece)
        size += len(piece)
        on_bytes(size)
    file.write(bytes(-size % BLOCK))
    layer_digest = f"sha256:{digest.hexdigest()}"
    file.seek(0)
    file.write(_header(_blob(layer_digest), size))
    file.seek(0, os.SEEK_END)

    config = _json(config_of(layer_digest))
    config_digest = _digest(config)
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": {"mediaType": _CONFIG_TYPE, "digest": config_digest, "size": len(config)},
            "layers": [{"mediaType": _LAYER_TYPE, "digest": layer_digest, "size": size}],
        }
    )
    manifest_digest = _digest(manifest)
    descriptor = {
        "mediaType": _MANIFEST_TYPE,
        "digest": manifest_digest,
        "size": len(manifest),
        "annotations": {
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
        },
    }
    members = {
        _blob(config_digest): config,
        _blob(manifest_digest): manifest,
        "index.json": _json({"schemaVersion": 2, "manifests": [descriptor]}),
        "manifest.json": _json(
            [{"Config": _blob(config_digest), "RepoTags": [reference], "Layers": [_blob(layer_digest)]}]
        ),
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
    }
    for name, content in members.items():
        file.write(_header(name, len(content)) + content + bytes(-len(content) % BLOCK))
    file.write(bytes(2 * BLOCK))
    return Archive(layer_digest, size, config_digest, manifest_digest)


def pieces(path: Path, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """The file's bytes, for a stream to the engine; `on_bytes` is told how many were given so far."""
    given = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece
            given += len(piece)
            on_bytes(given)


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _header(name: str, size: int) -> bytes:
    # Above 8 GiB the number is binary with the top bit set, as GNU tar and Go's archive/tar have it.
    number = b"%011o\0" % size if size < _OCTAL_LIMIT else b"\x80" + size.to_bytes(11, "big")
    block = b"".join(
        [
            name.encode("ascii").ljust(100, b"\0"),
            b"0000644\x000000000\x000000000\x00",
            number,
            b"00000000000\0",
            b"        0",
            bytes(100),
            b"ustar\x0000",
            bytes(247),
        ]
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]

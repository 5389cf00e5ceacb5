"""Frames of rows from an agent's scan, checked and made into batches of FILES_SCHEMA."""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from rehost.agent import protocol
from rehost.replication.manifest import FILES_SCHEMA, KEPT_FLAGS, XATTR_TYPE

_NAME_BYTES = 255  # of one component, as in every Linux filesystem
_TARGET_BYTES = 4096
_XATTR_NAME_BYTES = 255
_XATTR_VALUE_BYTES = 65_536
# "", "." and ".." as components, and components that are too long, in paths framed by slashes.
_BAD_COMPONENT = re.compile(rb"//|/\.\.?/|[^/\0]{%d}" % (_NAME_BYTES + 1))
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_NUMPY = {"H": "<u2", "I": "<u4", "Q": "<u8", "q": "<i8"}


def rows_of(raw: bytes, volumes: int, violation: Callable[[str], Exception]) -> pa.RecordBatch:
    """A batch of FILES_SCHEMA rows without chunks. Raises what `violation` makes of a reason."""
    rows, columns = _columns(raw, violation)
    paths = columns["paths"].split(b"\0") if rows else []
    targets = columns["targets"].split(b"\0") if rows else []
    if len(paths) != rows or len(targets) != rows:
        raise violation("another number of paths or targets than rows")
    framed = b"/" + b"/\0/".join(path for path in paths if path) + b"/"
    if framed != b"//" and _BAD_COMPONENT.search(framed):
        raise violation("a path that no file can have")
    numbers = {
        name: np.frombuffer(columns[name], dtype=_NUMPY[code])
        for name, code in protocol.ROW_COLUMNS
        if code is not None
    }
    types = numbers["mode"] & 0o170000
    if not np.isin(types, _TYPES).all() or (numbers["mode"] > 0o177777).any():
        raise violation("a file of an unknown type")
    if (numbers["volume"] >= volumes).any():
        raise violation("a row of a volume that was not asked for")
    if (numbers["size"] > np.uint64(2**63 - 1)).any() or (numbers["size"][types != stat.S_IFREG] != 0).any():
        raise violation("a size that no file can have")
    is_link = types == stat.S_IFLNK
    if any(bool(target) != link or len(target) >= _TARGET_BYTES for target, link in zip(targets, is_link, strict=True)):
        raise violation("a target that no symbolic link can have")
    arrays = {
        name: pa.array(numbers[name], FILES_SCHEMA.field(name).type) for name in numbers if name in FILES_SCHEMA.names
    }
    arrays["path"] = pa.array(paths, pa.binary())
    arrays["target"] = pa.array([target or None for target in targets], pa.binary())
    arrays["flags"] = pa.array(numbers["flags"] & KEPT_FLAGS, pa.uint32())
    arrays["xattrs"] = _xattrs(numbers, columns["xattr_bytes"], violation)
    arrays["link_group"] = pa.nulls(rows, pa.uint64())
    arrays["chunks"] = pa.array([[]] * rows, FILES_SCHEMA.field("chunks").type)
    arrays["unstable"] = pa.array(np.zeros(rows, dtype=bool))
    return pa.RecordBatch.from_arrays([arrays[name] for name in FILES_SCHEMA.names], schema=FILES_SCHEMA)


def _columns(raw: bytes, violation: Callable[[str], Exception]) -> tuple[int, dict[str, bytes]]:
    try:
        (rows,) = struct.unpack_from(">I", raw)
        at = 4
        columns: dict[str, bytes] = {}
        for name, _ in protocol.ROW_COLUMNS:
            (length,) = struct.unpack_from(">I", raw, at)
            columns[name] = raw[at + 4 : at + 4 + length]
            at += 4 + length
    except struct.error as error:
        raise violation("rows that are cut short") from error
    if at != len(raw) or not 0 < rows <= protocol.ROWS_BATCH:
        raise violation("rows of another length than they say")
    for name, code in protocol.ROW_COLUMNS:
        per_attribute = name in ("xattr_name_length", "xattr_value_length")
        expected = None if per_attribute or code is None else rows * protocol.WIDTHS[code]
        if expected is not None and len(columns[name]) != expected:
            raise violation(f"a column {name} of another length than its rows")
    return rows, columns


def _xattrs(numbers: dict[str, np.ndarray], content: bytes, violation: Callable[[str], Exception]) -> pa.Array:
    counts = numbers["xattr_count"].astype(np.int64)
    names_at, values_at = numbers["xattr_name_length"], numbers["xattr_value_length"]
    total = int(counts.sum())
    if total != len(names_at) or total != len(values_at):
        raise violation("another number of extended attributes than it says")
    names: list[bytes] = []
    values: list[bytes] = []
    at = 0
    for name_length, value_length in zip(names_at.tolist(), values_at.tolist(), strict=True):
        names.append(content[at : at + name_length])
        values.append(content[at + name_length : at + name_length + value_length])
        at += name_length + value_length
        if not 0 < name_length <= _XATTR_NAME_BYTES or value_length > _XATTR_VALUE_BYTES or b"\0" in names[-1]:
            raise violation("an extended attribute that no file can have")
    if at != len(content):
        raise violation("extended attributes of another length than they say")
    offsets = np.concatenate(([0], np.cumsum(counts)))
    for row in np.flatnonzero(counts > 1).tolist():
        of_row = names[offsets[row] : offsets[row + 1]]
        if len(set(of_row)) != len(of_row):
            raise violation("an extended attribute twice on one file")
    structs = pa.StructArray.from_arrays(
        [pa.array(names, pa.binary()), pa.array(values, pa.binary())], fields=list(XATTR_TYPE)
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=FILES_SCHEMA.field("xattrs").type)

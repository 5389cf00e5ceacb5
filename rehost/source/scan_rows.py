"""Frames of rows from an agent's scan, checked by whole columns and made into batches of SCAN_SCHEMA."""

from __future__ import annotations

import re
import stat
import struct
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rehost.agent import protocol
from rehost.replication.manifest import KEPT_FLAGS, SCAN_SCHEMA, XATTR_TYPE

_NAME_BYTES = 255  # of one component, as in every Linux filesystem
_TARGET_BYTES = 4096
_XATTR_NAME_BYTES = 255
_XATTR_VALUE_BYTES = 65_536
# "", "." and ".." as components, and components that are too long, in paths framed by slashes.
_BAD_COMPONENT = re.compile(rb"//|/\.\.?/|[^/\0]{%d}" % (_NAME_BYTES + 1))
_TYPES = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
_NUMPY = {"H": "<u2", "I": "<u4"}
_NANO = 10**9
_SECONDS = 2**63 // _NANO - 1  # a time in ns fits into 64 bits
# The beginning of struct statx (linux/stat.h), little-endian.
_STATUS = np.dtype(
    {
        "names": [
            *("flags", "nlink", "uid", "gid", "mode", "ino", "size"),
            *("atime", "atime_n", "ctime", "ctime_n", "mtime", "mtime_n"),
            *("rdev_major", "rdev_minor", "dev_major", "dev_minor"),
        ],
        "formats": [
            *("<u4", "<u4", "<u4", "<u4", "<u2", "<u8", "<u8"),
            *("<i8", "<u4", "<i8", "<u4", "<i8", "<u4"),
            *("<u4", "<u4", "<u4", "<u4"),
        ],
        "offsets": [8, 16, 20, 24, 28, 32, 40, 64, 72, 96, 104, 112, 120, 128, 132, 136, 140],
        "itemsize": protocol.STATUS_BYTES,
    }
)

Violation = Callable[[str], Exception]


class ScanRows:
    """Makes the frames of one scan into batches. Raises what `violation` makes of a reason."""

    def __init__(self, volumes: int, violation: Violation) -> None:
        self._volumes = volumes
        self._violation = violation
        self._last: bytes | None = None

    def batch(self, raw: bytes) -> pa.RecordBatch:
        """The rows of a frame as SCAN_SCHEMA has them; all of them come behind those of the frames before."""
        rows, columns = self._columns(raw)
        paths = self._paths(columns["paths"], rows)
        status = np.frombuffer(columns["status"], _STATUS)
        volume = np.frombuffer(columns["volume"], _NUMPY["H"])
        if (volume >= self._volumes).any():
            raise self._violation("a row of a volume that was not asked for")
        mode = status["mode"].astype(np.uint32)
        types = mode & 0o170000
        if not np.isin(types, _TYPES).all():
            raise self._violation("a file of an unknown type")
        regular, special = types == stat.S_IFREG, (types == stat.S_IFCHR) | (types == stat.S_IFBLK)
        size = np.where(regular, status["size"], np.uint64(0))
        if (size > np.uint64(2**63 - 1)).any():
            raise self._violation("a size that no file can have")
        has_flags = regular | (types == stat.S_IFDIR)
        arrays = {name: pa.array(status[name]) for name in ("uid", "gid", "ino", "nlink")}
        arrays |= {f"{name}_ns": self._time(status[name], status[f"{name}_n"]) for name in ("atime", "mtime", "ctime")}
        arrays |= {name: pa.array(np.where(special, status[name], 0)) for name in ("rdev_major", "rdev_minor")}
        arrays["path"] = paths
        arrays["volume"] = pa.array(volume)
        arrays["mode"] = pa.array(mode)
        arrays["size"] = pa.array(size)
        arrays["flags"] = pa.array(np.where(has_flags, status["flags"] & KEPT_FLAGS, 0))
        arrays["dev"] = pa.array(_device(status["dev_major"], status["dev_minor"]))
        arrays["target"] = self._targets(columns["targets"], types == stat.S_IFLNK)
        arrays["xattrs"] = self._xattrs(columns, rows)
        return pa.RecordBatch.from_arrays(
            [arrays[field.name].cast(field.type) for field in SCAN_SCHEMA], schema=SCAN_SCHEMA
        )

    def _columns(self, raw: bytes) -> tuple[int, dict[str, bytes]]:
        try:
            (rows,) = struct.unpack_from(">I", raw)
            at = 4
            columns: dict[str, bytes] = {}
            for name, _ in protocol.ROW_COLUMNS:
                (length,) = struct.unpack_from(">I", raw, at)
                columns[name] = raw[at + 4 : at + 4 + length]
                at += 4 + length
        except struct.error as error:
            raise self._violation("rows that are cut short") from error
        if at != len(raw) or not 0 < rows <= protocol.ROWS_BATCH:
            raise self._violation("rows of another length than they say")
        attributes = len(columns["xattr_row"])
        expected = {
            "volume": rows * 2,
            "status": rows * protocol.STATUS_BYTES,
            "xattr_name_length": attributes,
            "xattr_value_length": attributes,
            "xattr_row": attributes // 4 * 4,
        }
        for name, length in expected.items():
            if len(columns[name]) != length:
                raise self._violation(f"a column {name} of another length than its rows")
        return rows, columns

    def _paths(self, joined: bytes, rows: int) -> pa.Array:
        content = np.frombuffer(joined, np.uint8)
        ends = np.append(np.flatnonzero(content == 0), len(content))
        if len(ends) != rows:
            raise self._violation("another number of paths than rows")
        # The root's path is empty, and comes first of all: no other may be.
        framed = b"/" + joined[1 if self._last is None and not ends[0] else 0 :].replace(b"\0", b"/\0/") + b"/"
        if (joined and _BAD_COMPONENT.search(framed)) or (not joined and self._last is not None):
            raise self._violation("a path that no file can have")
        if (np.diff(ends, prepend=-1) > protocol.PATH_BYTES).any():
            raise self._violation("a path that is too long")
        offsets = np.concatenate(([0], ends - np.arange(rows))).astype(np.int32)
        data = pa.py_buffer(content[content != 0].tobytes())
        paths = pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets.tobytes()), data])
        ascending = pc.all(pc.less(paths.slice(0, rows - 1), paths.slice(1)), min_count=0).as_py()
        if not ascending or (self._last is not None and self._last >= paths[0].as_py()):
            raise self._violation("a path that comes twice or out of order")
        self._last = paths[rows - 1].as_py()
        return paths

    def _time(self, seconds: np.ndarray, nanoseconds: np.ndarray) -> pa.Array:
        if (nanoseconds >= _NANO).any() or (seconds > _SECONDS).any() or (seconds < -_SECONDS).any():
            raise self._violation("a time that no file can have")
        return pa.array(seconds * _NANO + nanoseconds)

    def _targets(self, joined: bytes, is_link: np.ndarray) -> pa.Array:
        rows = np.flatnonzero(is_link)
        targets = joined.split(b"\0") if len(rows) or joined else []
        if len(targets) != len(rows) or any(not 0 < len(target) < _TARGET_BYTES for target in targets):
            raise self._violation("a target that no symbolic link can have")
        places = np.zeros(len(is_link), np.int64)
        places[rows] = np.arange(len(rows))
        return pa.array(targets, pa.binary()).take(pa.array(places, mask=~is_link))

    def _xattrs(self, columns: dict[str, bytes], rows: int) -> pa.Array:
        of_rows = np.frombuffer(columns["xattr_row"], _NUMPY["I"])
        content = columns["xattr_bytes"]
        if (of_rows >= rows).any() or (of_rows[1:] < of_rows[:-1]).any():
            raise self._violation("an extended attribute of no row, or out of order")
        names: list[bytes] = []
        values: list[bytes] = []
        at = 0
        lengths = (np.frombuffer(columns[f"xattr_{of}_length"], _NUMPY["I"]).tolist() for of in ("name", "value"))
        for name_length, value_length in zip(*lengths, strict=True):
            names.append(content[at : at + name_length])
            values.append(content[at + name_length : at + name_length + value_length])
            at += name_length + value_length
            if not 0 < name_length <= _XATTR_NAME_BYTES or value_length > _XATTR_VALUE_BYTES or b"\0" in names[-1]:
                raise self._violation("an extended attribute that no file can have")
        if at != len(content):
            raise self._violation("extended attributes of another length than they say")
        if len(set(zip(of_rows.tolist(), names, strict=True))) != len(names):
            raise self._violation("an extended attribute twice on one file")
        offsets = np.concatenate(([0], np.cumsum(np.bincount(of_rows, minlength=rows))))
        structs = pa.StructArray.from_arrays(
            [pa.array(names, pa.binary()), pa.array(values, pa.binary())], fields=list(XATTR_TYPE)
        )
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=SCAN_SCHEMA.field("xattrs").type)


def _device(major: np.ndarray, minor: np.ndarray) -> np.ndarray:
    """The number that stat(2) tells of a device, as makedev(3) of glibc puts it together."""
    high, low = major.astype(np.uint64), minor.astype(np.uint64)
    made: np.ndarray = (
        ((high & np.uint64(0xFFFFF000)) << np.uint64(32))
        | ((high & np.uint64(0xFFF)) << np.uint64(8))
        | ((low & np.uint64(0xFFFFFF00)) << np.uint64(12))
        | (low & np.uint64(0xFF))
    )
    return made

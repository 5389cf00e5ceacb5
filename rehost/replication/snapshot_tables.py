"""The Parquet files of a snapshot: written and checked some rows at a time, however many there are."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rehost.errors import ManifestInvalid, StoreUnreadable
from rehost.replication.block_zeros import KEY, inside, unpacked
from rehost.replication.manifest import BLOCKS_SCHEMA, FILES_SCHEMA, validate, validate_file
from rehost.replication.pack_index import names_of

_ROWS_A_GROUP = 65_536
_ROWS_AT_ONCE = 16_384


def write_files(files: Path | pa.Table, target: Path) -> None:
    """Write the files table of a snapshot, durably, after checking it. Raises ManifestInvalid, StoreUnreadable."""
    if isinstance(files, Path):
        _copy(files, target, FILES_SCHEMA)
        validate_file(target)
    else:
        validate(files)
        table = files.replace_schema_metadata(FILES_SCHEMA.metadata)
        pq.write_table(table, target, compression="zstd", row_group_size=_ROWS_A_GROUP)
    _fsync(target)


def check_files(path: Path) -> None:
    """Refuse a files table that is none or breaks a rule. Raises ManifestInvalid, StoreUnreadable."""
    _open(path, FILES_SCHEMA).close()
    validate_file(path)


def write_blocks(blocks: Path, target: Path) -> None:
    """Write the blocks table of a snapshot, durably. Raises StoreUnreadable."""
    _open(blocks, BLOCKS_SCHEMA).close()
    _copy(blocks, target, BLOCKS_SCHEMA)
    _fsync(target)


def check_blocks(path: Path, regions: Sequence[tuple[int, int]]) -> None:
    """Refuse a blocks table that breaks a rule, given the (size, block length) of each region. Raises ManifestInvalid.

    It holds afterwards: rows are sorted by region and block and none comes twice, every region is one of the
    snapshot's, and every block begins within its region; so are the runs of zeros, and none of their blocks has a row.
    """
    blocks_of = np.array([-(-size // length) for size, length in regions], np.uint64)
    last = (-1, -1)
    with _open(path, BLOCKS_SCHEMA) as file:
        zeros = _zeros(file, blocks_of)
        for batch in file.iter_batches(_ROWS_A_GROUP):
            if not batch.num_rows:
                continue
            if any(column.null_count for column in batch.columns):
                raise ManifestInvalid(path="", reason="the table of blocks has a null")
            region, block = batch["region"].to_numpy(), batch["block"].to_numpy()
            if region.max() >= len(blocks_of) or (block >= blocks_of[region]).any():
                raise ManifestInvalid(path="", reason="a block is outside its region, or its region is none")
            same = region[1:] == region[:-1]
            in_order = (region[1:] > region[:-1]) | (same & (block[1:] > block[:-1]))
            if not in_order.all() or (int(region[0]), int(block[0])) <= last:
                raise ManifestInvalid(path="", reason="a block comes twice or out of order")
            last = int(region[-1]), int(block[-1])
            for number in np.unique(region):
                if inside(block[region == number], zeros[zeros[:, 0] == number, 1:]).any():
                    raise ManifestInvalid(path="", reason="a block of zeros has a row")


def _zeros(file: pq.ParquetFile, blocks_of: np.ndarray) -> np.ndarray:
    """The runs of zeros of a blocks table, all within its regions; `blocks_of` is the number of blocks of each."""
    try:
        zeros = unpacked((file.metadata.metadata or {}).get(KEY))
    except ValueError as error:
        raise ManifestInvalid(path="", reason=str(error)) from error
    outside = bool((zeros[:, 0] >= len(blocks_of)).any())
    if outside or bool((zeros[:, 1] + zeros[:, 2] > blocks_of[zeros[:, 0]]).any()):
        raise ManifestInvalid(path="", reason="a block of zeros is outside its region, or its region is none")
    return zeros


def required_chunks(path: Path, require: Callable[[np.ndarray], None]) -> None:
    """Call `require` with the names of all chunks of a files or blocks table, some at a time."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        files = "chunks" in file.schema_arrow.names
        column = "chunks.list.element.sha256" if files else "sha256"
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=[column], use_threads=False):
            require(names_of(pc.struct_field(batch["chunks"].flatten(), "sha256") if files else batch["sha256"]))


def read_files(path: Path) -> pa.Table:
    """A files table from its Parquet file; raises StoreUnreadable where it is something else."""
    try:
        with _open(path, FILES_SCHEMA) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise StoreUnreadable(path=path, reason=str(error)) from error


def _open(path: Path, schema: pa.Schema) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise StoreUnreadable(path=path, reason=str(error)) from error
    if not file.schema_arrow.equals(schema):
        file.close()
        raise StoreUnreadable(path=path, reason="it has other columns than such a table")
    return file


def _copy(source: Path, target: Path, schema: pa.Schema) -> None:
    """Copy a table; one that was written as snapshots have it stays as it is. Else what it knows of zeros is lost."""
    with _open(source, schema) as file:
        metadata = file.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        told = {key: value for key, value in (file.schema_arrow.metadata or {}).items() if key != KEY}
        as_published = told == schema.metadata and all(
            group.num_rows <= _ROWS_A_GROUP and group.column(0).compression == "ZSTD" for group in groups
        )
        if as_published:
            shutil.copyfile(source, target)
            return
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for batch in file.iter_batches(_ROWS_A_GROUP):
                writer.write_table(pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata))


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

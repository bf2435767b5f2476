"""Part files of the pair store: one block of rows each, named after the rows they hold."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from gmd_ray.hashing import content_digest
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.storage import put, remove

IMAGES = [field.name for field in PAIR_SCHEMA if pa.types.is_binary(field.type)]
SCALARS = [field.name for field in PAIR_SCHEMA if not pa.types.is_binary(field.type)]


def part_name(ids: Iterable[str]) -> str:
    """Name the part file of a set of rows by its ids, so that a block that is written twice is one file."""
    return f"part-{content_digest(chr(0).join(sorted(ids)).encode())[:20]}.parquet"


def write_part(filesystem: fs.FileSystem, rows_path: str, rows: pa.Table) -> str:
    """Write rows of PAIR_SCHEMA, sorted by id, as one atomic file; returns its name."""
    rows = rows.sort_by("id")
    sink = pa.BufferOutputStream()
    pq.write_table(
        rows,
        sink,
        # PNG bytes do not compress further, and no filter uses their minimum and maximum.
        compression={name: "none" if name in IMAGES else "zstd" for name in PAIR_SCHEMA.names},
        use_dictionary=False,
        write_statistics=SCALARS,
    )
    name = part_name(rows["id"].to_pylist())
    put(filesystem, f"{rows_path}/{name}", memoryview(sink.getvalue()))
    return name


def drop_rows(filesystem: fs.FileSystem, rows_path: str, unwanted: dict[str, set[str]]) -> None:
    """Rewrite part files without some of their rows.

    The shorter file is written before the old one is removed. A crash in between leaves rows twice, which the next run
    mends; no row is lost.

    Args:
        unwanted: part name -> ids to drop from it.
    """
    written: set[str] = set()
    for name, ids in unwanted.items():
        rows = pq.read_table(f"{rows_path}/{name}", filesystem=filesystem, schema=PAIR_SCHEMA, partitioning=None)
        kept = rows.filter(pc.invert(pc.is_in(rows["id"], pa.array(sorted(ids), pa.string()))))
        if kept.num_rows:
            written.add(write_part(filesystem, rows_path, kept))
        if name not in written:
            remove(filesystem, f"{rows_path}/{name}")

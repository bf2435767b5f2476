"""The accepted pairs, written for other tools."""

from __future__ import annotations

from pathlib import PurePosixPath

import pyarrow.parquet as pq

from gmd_ray.errors import DataError
from gmd_ray.generation.files import put
from gmd_ray.generation.store import PairStore
from gmd_ray.images.listing import open_filesystem
from gmd_ray.images.records import PAIR_SCHEMA, accepted, rows_dataset

_ROWS_PER_FILE = 1000


def export_pairs(
    store: str, dest: str, threshold: float, layout: str = "folders", higher_is_better: bool | None = None
) -> int:
    """Write the view `score >= threshold` of a store; the filter goes down into the Parquet scan.

    Args:
        store: the directory that holds `rows/`.
        dest: an empty or new folder, or a URL.
        layout: `parquet` (files of PAIR_SCHEMA, 1,000 rows each) or `folders` (`lq/` and `pseudo_target/` with PNG
            files of equal names: the id with its ending replaced).
        higher_is_better: direction of the score; None takes the manifest's.

    Returns:
        the number of pairs.

    Raises:
        DataError: no store there, nothing accepted, or `dest` holds something.
    """
    if higher_is_better is None:
        manifest = PairStore(store).read("manifest.json") or {}
        higher_is_better = manifest.get("higher_is_better", True)
    rows = rows_dataset(store)
    wanted = accepted(threshold, higher_is_better)
    if rows.count_rows(filter=wanted) == 0:
        raise DataError(f"{store}: no pair is accepted at threshold {threshold:g}; move scorer.threshold")
    filesystem, path = open_filesystem(dest)
    from pyarrow import fs

    if filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        raise DataError(f"{dest}: is not empty; export into a new folder")
    filesystem.create_dir(path, recursive=True)
    count = 0
    if layout == "parquet":
        for number, batch in enumerate(rows.to_batches(filter=wanted, batch_size=_ROWS_PER_FILE)):
            if batch.num_rows:
                with filesystem.open_output_stream(f"{path}/pairs-{number:05d}.parquet") as stream:
                    with pq.ParquetWriter(stream, PAIR_SCHEMA) as writer:
                        writer.write_batch(batch)
                count += batch.num_rows
        return count
    for batch in rows.to_batches(columns=["id", "lq", "pseudo_target"], filter=wanted, batch_size=16):
        for row in batch.to_pylist():
            for column in ("lq", "pseudo_target"):
                file = f"{path}/{column}/{_png_name(row['id'])}"
                filesystem.create_dir(str(PurePosixPath(file).parent), recursive=True)
                put(filesystem, file, row[column])
            count += 1
    return count


def _png_name(key: str) -> str:
    """`a/b.jpg` -> `a/b.jpg.png`, `a/b.png` -> `a/b.png`: two inputs never share a name."""
    return key if key.lower().endswith(".png") else f"{key}.png"

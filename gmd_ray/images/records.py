"""The rows of the pair store: an interface that other tools read (column by column in `PAIR_SCHEMA`)."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatch

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from gmd_ray.errors import DataError
from gmd_ray.images.listing import open_filesystem

PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("status", pa.string()),
        ("error_stage", pa.string()),
        ("error_type", pa.string()),
        ("error", pa.string()),
        ("lq", pa.binary()),
        ("restored", pa.binary()),
        ("pseudo_target", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("score", pa.float32()),
        ("teacher", pa.string()),
        ("student", pa.string()),
        ("scorer", pa.string()),
        ("seconds_restore", pa.float32()),
        ("seconds_project", pa.float32()),
        ("seconds_score", pa.float32()),
        ("attempts", pa.int32()),
    ]
)
"""One row for every input. `status` is `ok` or `failed`; images are lossless PNG bytes; width and height are those of
`pseudo_target`; `restored` is null where it was switched off."""


def rows_dataset(store_url: str, filesystem: fs.FileSystem | None = None) -> ds.Dataset:
    """The rows of a store as a lazy dataset: column choice and filters go down into the Parquet scan.

    Args:
        store_url: the directory that holds `rows/`; with `filesystem` given, a path on it.
        filesystem: default, that of the URL.

    Returns:
        a dataset of `PAIR_SCHEMA` over `rows/part-*.parquet`.

    Raises:
        DataError: where there are no such files.
    """
    if filesystem is None:
        filesystem, path = open_filesystem(store_url)
    else:
        path = store_url
    selector = fs.FileSelector(f"{path.rstrip('/')}/rows", allow_not_found=True)
    files = [info.path for info in filesystem.get_file_info(selector) if fnmatch(info.base_name, "part-*.parquet")]
    if not files:
        raise DataError(f"{store_url}: no pair store here (rows/part-*.parquet); `generate` makes one")
    return ds.dataset(sorted(files), schema=PAIR_SCHEMA, format="parquet", filesystem=filesystem)


def accepted(threshold: float, higher_is_better: bool, strangers: Collection[str] = ()) -> pc.Expression:
    """The gate as a filter over `rows_dataset`: finished, and the score at the threshold or on its better side.

    The threshold is rounded to the score's own float32, so that a score equal to it is accepted.

    Args:
        strangers: ids to leave out: `stranger_ids` of the store's manifest, images that are no longer among its inputs.
    """
    score, limit = pc.field("score"), pa.scalar(threshold, pa.float32())
    view = (pc.field("status") == "ok") & (score >= limit if higher_is_better else score <= limit)
    return view & ~pc.field("id").isin(pa.array(list(strangers), pa.string())) if strangers else view

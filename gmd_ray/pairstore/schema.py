"""The columns of the pair store, which other tools read too, and the filter that leaves the accepted pairs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatch

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pyarrow import fs

from gmd_ray.errors import DataError
from gmd_ray.storage import open_filesystem

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
        ("fidelity", pa.float32()),
        ("teacher", pa.string()),
        ("student", pa.string()),
        ("scorer", pa.string()),
        ("seconds_restore", pa.float32()),
        ("seconds_project", pa.float32()),
        ("seconds_score", pa.float32()),
        ("attempts", pa.int32()),
        ("bytes", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
        ("digest", pa.string()),
    ]
)
"""Columns of the pair store, which has one row for every input.

- `status` is `ok` or `failed`; a failed row has `error_stage`, `error_type` and `error`.
- `lq`, `restored` and `pseudo_target` are PNG files of 8 bits a sample. They are lossless, except that a 16-bit photo
  is reduced to 8 bits when it is read. `restored` is null where `generation.keep_restored` is off.
- `width` and `height` are those of `pseudo_target`, in pixels.
- `score` is on the scorer's own scale. `fidelity` compares `pseudo_target` with `restored`; it is null where
  `scorer.fidelity` is none, and stores of earlier versions lack the column.
- `student`, `teacher` and `scorer` are fingerprints of the models.
- `seconds_*` are wall times of the stages; `attempts` counts how often the image was tried.
- `bytes`, `modified` and `digest` (`hashing.content_digest`) describe the LQ file when it was read, so that a photo
  that changed under its name is noticed. `modified` is null where the storage has no such time. A file that could not
  be read has `bytes` as listed and no `digest`. Stores of earlier versions lack these columns.
- `uri` has `***` in place of passwords and signatures.
"""

HIGHER_IS_CLOSER = {"psnr": True, "ssim": True, "lpips": False, "dists": False}
"""Metrics that `fidelity` may hold -> whether higher values mean that the images are more alike."""


@dataclass(frozen=True)
class FidelityBound:
    """The gate's second condition: pairs whose pseudo-target differs more from `restored` are not accepted."""

    metric: str
    """A key of HIGHER_IS_CLOSER."""
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if HIGHER_IS_CLOSER[self.metric] else '<='} {self.limit:g}"


def fidelity_bound(limit: float | None, metric: str | None, recorded: str, store: str) -> FidelityBound | None:
    """Make the bound that rows have to meet; None where `limit` is None.

    Args:
        limit: `scorer.fidelity_bound`.
        metric: `scorer.fidelity` that the limit is meant for; None takes the metric that the store holds.
        recorded: `scorer.fidelity` that the store's rows were made with.
        store: its URL, for the message.

    Raises:
        DataError: the rows hold another metric's values, or none.
    """
    if limit is None:
        return None
    if recorded == "none" or metric not in (None, recorded):
        raise DataError(
            f"{store}: its rows were made with scorer.fidelity={recorded}, which a bound on {metric or 'fidelity'} "
            f"cannot use; leave out the bound, or generate into another out="
        )
    return FidelityBound(recorded, limit)


def rows_dataset(store_url: str, filesystem: fs.FileSystem | None = None) -> ds.Dataset:
    """Open the rows of a store as a lazy dataset, whose columns and filters are applied inside the Parquet scan.

    Args:
        store_url: the directory that holds `rows/`; with `filesystem` given, a path on it.
        filesystem: the filesystem of the path; None opens that of the URL.

    Returns:
        a dataset of `PAIR_SCHEMA` over `rows/part-*.parquet`.

    Raises:
        DataError: there are no such files.
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


def accepted(
    threshold: float,
    higher_is_better: bool,
    removed_inputs: Collection[str] = (),
    fidelity: FidelityBound | None = None,
) -> pc.Expression:
    """Make the filter over `rows_dataset` that leaves ok rows whose score is at the threshold or on its better side.

    Threshold and bound are rounded to the column's own float32, so that a value equal to them is accepted.

    Args:
        removed_inputs: ids to leave out, of images that are no longer among the store's inputs (`stranger_ids` of its
            manifest).
        fidelity: a bound on a second column; a row without a value there is not accepted.
    """
    view = (pc.field("status") == "ok") & _at_least("score", threshold, higher_is_better)
    if fidelity is not None:
        view = view & _at_least("fidelity", fidelity.limit, HIGHER_IS_CLOSER[fidelity.metric])
    return view & ~pc.field("id").isin(pa.array(list(removed_inputs), pa.string())) if removed_inputs else view


def _at_least(column: str, limit: float, higher_is_better: bool) -> pc.Expression:
    bound = pa.scalar(limit, pa.float32())
    return pc.field(column) >= bound if higher_is_better else pc.field(column) <= bound

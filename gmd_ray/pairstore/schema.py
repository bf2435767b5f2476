"""The rows of the pair store: an interface that other tools read (column by column in `PAIR_SCHEMA`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
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
"""One row for every input. `status` is `ok` or `failed`; images are PNG bytes of 8 bits a sample, lossless but for what
a 16-bit photo loses as it is read for Stage 0; width and height are those of `pseudo_target`; `restored` is null where
it was switched off; `fidelity`, of pseudo_target to restored, is null where nobody asked for it, and absent from stores
that are older than it. `bytes`, `modified` and `digest` (`hashing.content_digest`) are those of the LQ file as it was
read: a photo that changed under its name is another photo. `modified` is null where the storage has no such time; a
file that could not be read has `bytes` as listed, and no `digest`; all are null in stores that are older than they.
`uri` has `***` for passwords and signatures."""

HIGHER_IS_CLOSER = {"psnr": True, "ssim": True, "lpips": False, "dists": False}
"""What `fidelity` may hold, and its direction."""


@dataclass(frozen=True)
class FidelityBound:
    """The gate's second opinion: pairs whose pseudo-target strayed further from `restored` are not accepted."""

    metric: str
    """Of HIGHER_IS_CLOSER."""
    limit: float

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if HIGHER_IS_CLOSER[self.metric] else '<='} {self.limit:g}"


def fidelity_bound(limit: float | None, metric: str | None, recorded: str, store: str) -> FidelityBound | None:
    """The bound to hold rows against, None where there is none.

    Args:
        limit: `scorer.fidelity_bound`.
        metric: `scorer.fidelity` as it is asked for; None takes what the store has.
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


def accepted(
    threshold: float,
    higher_is_better: bool,
    removed_inputs: Collection[str] = (),
    fidelity: FidelityBound | None = None,
) -> pc.Expression:
    """The gate as a filter over `rows_dataset`: finished, and the score at the threshold or on its better side.

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

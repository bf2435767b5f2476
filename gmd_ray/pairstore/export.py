"""Export of the accepted pairs for other tools."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from gmd_ray.config import ScorerConfig
from gmd_ray.errors import ConfigError, DataError, nearest
from gmd_ray.images.safe_paths import safe_relative
from gmd_ray.pairstore.manifest import read_manifest
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.store import PairStore, arrow_errors_as_data_errors
from gmd_ray.pairstore.view import StoreView
from gmd_ray.storage import open_filesystem, put

LAYOUTS = ("parquet", "folders")


def last_gate(store: str, scorer: ScorerConfig, given: Collection[str] = ()) -> ScorerConfig:
    """Replace the gate's settings by those of the store's last finished run.

    Args:
        given: names of fields (`threshold`, `fidelity`, `fidelity_bound`) that stay as they are in `scorer`.

    Returns:
        the settings; `scorer` itself where no run has finished.
    """
    manifest = read_manifest(PairStore(store))
    if manifest is None:
        return scorer
    last: dict[str, Any] = {
        "threshold": scorer.threshold if manifest.threshold is None else manifest.threshold,
        "fidelity": manifest.fidelity or "none",
        "fidelity_bound": manifest.fidelity_bound,
    }
    return replace(scorer, **{key: value for key, value in last.items() if key not in given})


def export_pairs(
    store: str,
    dest: str,
    threshold: float,
    layout: str = "folders",
    higher_is_better: bool | None = None,
    *,
    fidelity: str | None = None,
    bound: float | None = None,
) -> int:
    """Write the accepted pairs of a store (`StoreView`) to a folder; nothing is generated.

    The filter is applied inside the Parquet scan, so that images of other rows are not read.

    Args:
        store: the directory that holds `rows/`.
        dest: an empty or new folder, or a URL.
        threshold: on the scorer's own scale.
        layout: `parquet` (files of PAIR_SCHEMA, about 1,000 rows each) or `folders` (`lq/` and `pseudo_target/` with
            PNG files of equal names: the id, with `.png` added where it has another ending).
        higher_is_better: direction of the score; None takes the store's own.
        fidelity, bound: the second condition (`scorer.fidelity`, `scorer.fidelity_bound`); it is off where `bound` is
            None.

    Returns:
        the number of pairs.

    Raises:
        ConfigError: no such layout.
        DataError: there is no store, nothing is accepted, `dest` is not empty, an id is not a path below a folder, two
            ids give one file name, or the bound is on a fidelity that the store does not hold.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout={layout}: {nearest(layout, LAYOUTS)}")
    view = StoreView.open(store, threshold, bound, fidelity=fidelity, higher_is_better=higher_is_better)
    ids, second = view.ids(), view.bound
    if not ids:
        raise DataError(
            f"{store}: no pair is accepted at threshold {threshold:g}{f' and {second}' if second else ''}; "
            f"move scorer.threshold{' or scorer.fidelity_bound' if second else ''}"
        )
    if len(set(ids)) < len(ids):
        raise DataError(f"{store}: {len(ids) - len(set(ids))} rows are there twice after a crash; run generate again")
    filesystem, path = open_filesystem(dest)
    if filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        raise DataError(f"{dest}: is not empty; export into a new folder")
    if layout == "parquet":
        _write_parquet(_batches(view, PAIR_SCHEMA.names, 64), filesystem, path)
        return len(ids)
    _check_names(store, ids)
    for batch in _batches(view, ["id", "lq", "pseudo_target"], 16):
        for row in batch.to_pylist():
            for column in ("lq", "pseudo_target"):
                put(filesystem, f"{path}/{column}/{_png_name(row['id'])}", row[column])
    return len(ids)


def _check_names(store: str, ids: Sequence[str]) -> None:
    """Refuse ids that cannot each be a file of its own below one folder.

    The store may come from somebody else, so an id may be `../x`, or both a file and a folder.
    """
    try:
        names = {_png_name(safe_relative(key)) for key in ids}
    except DataError as error:
        raise DataError(f"{store}: {error}, or use the parquet layout") from error
    if len(names) < len(ids):
        raise DataError(f"{store}: two images differ by an added .png alone; use the parquet layout")
    for name in names:
        for folder in map(str, PurePosixPath(name).parents):
            if folder in names:
                raise DataError(f"{store}: {folder} is an image, and the folder of {name}; use the parquet layout")


def _batches(view: StoreView, columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
    """Read columns of the accepted pairs in batches of `size` rows.

    Raises:
        DataError: a part file cannot be read. Errors of whoever writes the batches pass unchanged.
    """
    with arrow_errors_as_data_errors(view.url):
        yield from view.rows.to_batches(columns=columns, filter=view.expression, batch_size=size)


def _write_parquet(batches: Iterator[pa.RecordBatch], filesystem: fs.FileSystem, path: str) -> None:
    ds.write_dataset(
        batches,
        path,
        schema=PAIR_SCHEMA,
        filesystem=filesystem,
        format="parquet",
        basename_template="pairs-{i}.parquet",
        # PNG bytes do not compress further.
        file_options=ds.ParquetFileFormat().make_write_options(compression="none"),
        max_rows_per_file=1024,
        max_rows_per_group=64,
    )


def _png_name(key: str) -> str:
    """Name the PNG file of an id: `a/b.jpg` -> `a/b.jpg.png`, `a/b.png` -> `a/b.png`.

    The old ending stays, so that photo.jpg and photo.png do not share a name.
    """
    return key if key.lower().endswith(".png") else f"{key}.png"

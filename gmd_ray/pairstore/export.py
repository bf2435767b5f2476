"""The accepted pairs, written for other tools."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from gmd_ray.config import ScorerConfig
from gmd_ray.errors import ConfigError, DataError, nearest
from gmd_ray.images.listing import open_filesystem
from gmd_ray.images.safe_paths import safe_relative
from gmd_ray.pairstore import manifest, run_settings
from gmd_ray.pairstore.schema import PAIR_SCHEMA, accepted, fidelity_bound, rows_dataset
from gmd_ray.pairstore.store import PairStore, arrow_errors_as_data_errors
from gmd_ray.storage import put

LAYOUTS = ("parquet", "folders")


def last_gate(store: str, scorer: ScorerConfig, given: Collection[str] = ()) -> ScorerConfig:
    """The gate as the store's last finished run had it, but for the fields in `given`; as it is where none finished."""
    url = PairStore(store)
    told = url.read(manifest.MANIFEST_FILE)
    if told is None:
        return scorer
    recorded = run_settings.recorded_fidelity(told.get("settings", {}))
    last = {"threshold": told["threshold"], "fidelity": recorded, "fidelity_bound": told.get("fidelity_bound")}
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
    """Write the accepted view of a store (`images.records.accepted`); nothing is generated.

    The filter goes down into the Parquet scan.

    Args:
        store: the directory that holds `rows/`.
        dest: an empty or new folder, or a URL.
        threshold: in the scorer's own scale.
        layout: `parquet` (files of PAIR_SCHEMA, about 1,000 rows each) or `folders` (`lq/` and `pseudo_target/` with
            PNG files of equal names: the id, with `.png` added where it has another ending).
        higher_is_better: direction of the score; None takes the store's own.
        fidelity, bound: the second opinion (`scorer.fidelity`, `scorer.fidelity_bound`); no bound, no second opinion.

    Returns:
        the number of pairs.

    Raises:
        ConfigError: no such layout.
        DataError: no store there, nothing accepted, `dest` holds something, an id that is not a path below a folder,
            two ids that make one name, or a bound on a fidelity that the store does not hold.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout={layout}: {nearest(layout, LAYOUTS)}")
    rows = rows_dataset(store)
    told, saved = PairStore(store).read(manifest.MANIFEST_FILE), PairStore(store).read(run_settings.SETTINGS_FILE) or {}
    if higher_is_better is None:
        higher_is_better = run_settings.higher_is_better(saved.get("models", {}))
    second = fidelity_bound(bound, fidelity, run_settings.recorded_fidelity(saved.get("settings", {})), store)
    view = accepted(threshold, higher_is_better, manifest.removed_input_ids(told, saved), second)
    with arrow_errors_as_data_errors(store):
        ids = rows.to_table(columns=["id"], filter=view)["id"].to_pylist()
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
        _write_parquet(_batches(store, rows, view, PAIR_SCHEMA.names, 64), filesystem, path)
        return len(ids)
    _check_names(store, ids)
    for batch in _batches(store, rows, view, ["id", "lq", "pseudo_target"], 16):
        for row in batch.to_pylist():
            for column in ("lq", "pseudo_target"):
                put(filesystem, f"{path}/{column}/{_png_name(row['id'])}", row[column])
    return len(ids)


def _check_names(store: str, ids: Sequence[str]) -> None:
    """Refuse ids that cannot be files, each its own: a store may be somebody else's."""
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


def _batches(
    store: str, rows: ds.Dataset, view: ds.Expression, columns: list[str], size: int
) -> Iterator[pa.RecordBatch]:
    """Of the accepted pairs; what cannot be read is told as such, unlike what cannot be written."""
    with arrow_errors_as_data_errors(store):
        yield from rows.to_batches(columns=columns, filter=view, batch_size=size)


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
    """`a/b.jpg` -> `a/b.jpg.png`, `a/b.png` -> `a/b.png`: photo.jpg and photo.png do not share a name."""
    return key if key.lower().endswith(".png") else f"{key}.png"

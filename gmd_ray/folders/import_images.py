"""Importing images from Parquet files, WebDataset shards and Hugging Face data sets into folders of image files.

Ray Data reads the rows, and each task writes the files of its rows atomically, so a second call completes an import.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass

import ray.data

from gmd_ray.errors import DataError, GmdError
from gmd_ray.folders.import_rows import Import, check_columns, check_import, two_formats, write_rows
from gmd_ray.storage import open_filesystem
from gmd_ray.text import one_line


@dataclass(frozen=True)
class Imported:
    """The outcome of an import."""

    images: int
    """Number of different ids, which is the number of files in each folder."""
    repeated: int
    """Number of rows that repeat the id and images of another row."""
    replaced: int = 0
    """Number of rows that replaced a file of other bytes."""


def import_images(
    source: str, out: str, *, hq: str | None = None, lq: str | None = None, key: str | None = None
) -> Imported:
    """Write `<out>/hq/<id>.<ext>` and `<out>/lq/<id>.<ext>` with the bytes of the images in the rows.

    Needs a Ray session.

    Args:
        source: `parquet:URL` of a file or folder; `wds:URL` of a shard or a folder of shards; `hf:PATH` of a data set
            that `datasets` saved to disk; or `hf:NAME[:SPLIT]` on the hub, with the split `train` by default.
        out: a folder or URL.
        hq, lq: columns that hold encoded images, as bytes or as `{bytes, path}` (Hugging Face's Image); one of the two
            may be None. A path is used if there are no bytes, and read only below the data set's own folder. In a
            WebDataset, a column is named by what follows the first dot of its files: `hq.png`.
        key: column of the id, which may contain folders. The default is `__key__` in a WebDataset, and otherwise a hash
            of the row's images.

    Raises:
        ConfigError: the kind of the source is unknown, a path is empty, or no column is named.
        DataError: the source cannot be read; a column is absent or has another type; a row has no image; an id cannot
            be a file name; or one id has different images.
    """
    take = check_import(source, out, hq, lq, key)
    digests: dict[str, str] = {}
    written: set[str] = set()
    repeated = replaced = 0
    errors: Counter[str] = Counter()
    try:
        rows = _read(take).map_batches(write_rows, batch_format="pyarrow", batch_size=16, fn_kwargs={"take": take})
        for row in rows.iter_rows():
            if row["error"]:
                errors[row["error"]] += 1
                continue
            written.update(row["files"])
            if row["id"] not in digests:
                digests[row["id"]] = row["digest"]
                replaced += int(row["replaced"])
            elif digests[row["id"]] == row["digest"]:
                repeated += 1
            else:
                errors[f"two rows have the id {row['id']!r} and different images"] += 1
    except GmdError:
        raise
    except Exception as error:  # Ray wraps errors of reading and writing; only the innermost cause is useful
        raise DataError(f"{source}: cannot be imported: {_cause(error)}") from error
    if errors:
        first = min(errors)
        raise DataError(f"{source}: {errors.total()} rows cannot be used: {first}")
    if not digests:
        raise DataError(f"{source}: holds no rows")
    others = two_formats(take, list(written))
    if others:
        raise DataError(
            f"{out}: {len(others)} ids have an image of an earlier import too, in another format ({others[0]}); "
            "remove those, or import into another folder"
        )
    return Imported(len(digests), repeated, replaced)


def _cause(error: BaseException) -> str:
    """Describe the innermost error on one line."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    return f"{type(error).__name__}: {one_line(error, 300)}"


def _read(take: Import) -> ray.data.Dataset:
    if take.kind == "hf":
        return _huggingface(take)
    filesystem, path = open_filesystem(take.place)
    if take.kind == "wds":
        # decoder=None keeps the bytes of the files. Rows that lack a column are reported one by one.
        return ray.data.read_webdataset(path, filesystem=filesystem, decoder=None, file_extensions=["tar"])
    return ray.data.read_parquet(path, filesystem=filesystem).select_columns(take.columns)


def _huggingface(take: Import) -> ray.data.Dataset:
    place = take.place
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"hf:{place}: needs the datasets package; pip install 'gmd_ray[hf]'") from error
    folder = os.path.expanduser(place)
    name, _, split = place.partition(":")
    try:
        if os.path.isdir(folder):
            data = datasets.load_from_disk(folder)
        else:
            data = datasets.load_dataset(name, split=split or "train")
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        raise DataError(f"hf:{place}: cannot be loaded: {one_line(error)}") from error
    if isinstance(data, dict):
        raise DataError(f"hf:{place}: holds the splits {', '.join(sorted(data))}; name the folder of one of them")
    check_columns(f"hf:{place}", take, data.features.arrow_schema)
    return ray.data.from_huggingface(data.select_columns(take.columns))

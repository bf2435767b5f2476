"""Images out of Parquet files, WebDataset shards and Hugging Face data sets into folders that every verb reads.

Ray Data reads; each task writes the files of its rows, whole or not at all, so that a second call does what is missing.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import ray.data
from pyarrow import fs

from gmd_ray.errors import ConfigError, DataError, nearest
from gmd_ray.generation.files import absolute, put
from gmd_ray.images.listing import EXTENSIONS, open_filesystem, read_file

READERS = ("parquet", "wds", "hf")

_MAGIC = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"BM": ".bmp",
    b"GIF8": ".gif",
    b"P6": ".ppm",
    b"P5": ".pgm",
}


@dataclass(frozen=True)
class Imported:
    """What an import found."""

    images: int
    """Different ids: so many files are in each folder."""
    repeated: int
    """Rows whose id and images another row has too."""


def import_images(
    source: str, out: str, *, hq: str | None = None, lq: str | None = None, key: str | None = None
) -> Imported:
    """Write `<out>/hq/<id>.<ext>` and `<out>/lq/<id>.<ext>`, the files' bytes as they are in the rows.

    Needs a Ray session.

    Args:
        source: `parquet:URL` of a file or folder; `wds:URL` of a shard or a folder of shards; `hf:PATH` of a data set
            that `datasets` saved to disk, or `hf:NAME[:SPLIT]` on the hub, split `train` if none is given.
        out: a folder or URL.
        hq, lq: columns that hold encoded images, as bytes or as `{bytes, path}` (Hugging Face's Image); one may be
            left out. In a WebDataset a column is what follows the key's first dot: `hq.png`.
        key: column of the id, which may hold folders. Left out, it is `__key__` in a WebDataset, and else the hash of
            the row's images: the same wherever the row lies.

    Raises:
        ConfigError: for a source that cannot be told, or no column.
        DataError: for columns that are not there, rows without an image, and different images of one id.
    """
    kind, colon, place = source.partition(":")
    if not colon or kind not in READERS:
        raise ConfigError(f"{source}: give READER:PLACE; {nearest(kind, READERS)}")
    sides = {side: column for side, column in (("hq", hq), ("lq", lq)) if column}
    if not sides:
        raise ConfigError("import: name the column of the images, --hq COLUMN or --lq COLUMN, or both for pairs")
    if kind == "wds":
        key = key or "__key__"
    wanted = [*sides.values(), *([key] if key else [])]
    data = _read(kind, place, wanted)
    rows = data.map_batches(
        _write,
        batch_format="pyarrow",
        batch_size=16,
        fn_kwargs={"out": absolute(out), "sides": sides, "key": key},
    )
    found: dict[str, str] = {}
    repeated = 0
    errors: Counter[str] = Counter()
    for row in rows.iter_rows():
        if row["error"]:
            errors[row["error"]] += 1
        elif row["id"] not in found:
            found[row["id"]] = row["digest"]
        elif found[row["id"]] == row["digest"]:
            repeated += 1
        else:
            errors[f"two rows have the id {row['id']!r} and different images"] += 1
    if errors:
        first = min(errors)
        raise DataError(f"{source}: {errors.total()} rows cannot be used: {first}")
    if not found:
        raise DataError(f"{source}: holds no rows")
    return Imported(len(found), repeated)


def _read(kind: str, place: str, wanted: Sequence[str]) -> ray.data.Dataset:
    if kind == "hf":
        return _huggingface(place, wanted)
    filesystem, path = open_filesystem(place)
    if filesystem.get_file_info(path).type == fs.FileType.NotFound:
        raise DataError(f"{kind}:{place}: no such file or folder")
    if kind == "wds":
        # No decoder: the files' own bytes. A shard's rows may lack a column, which is told row by row.
        return ray.data.read_webdataset(path, filesystem=filesystem, decoder=None, file_extensions=["tar"])
    data = ray.data.read_parquet(path, filesystem=filesystem)
    _check_columns(f"parquet:{place}", wanted, data.schema().names)
    return data.select_columns(list(dict.fromkeys(wanted)))


def _huggingface(place: str, wanted: Sequence[str]) -> ray.data.Dataset:
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
        raise DataError(f"hf:{place}: cannot be loaded: {' '.join(str(error).split())}") from error
    if isinstance(data, dict):
        raise DataError(f"hf:{place}: holds the splits {', '.join(sorted(data))}; name the folder of one of them")
    _check_columns(f"hf:{place}", wanted, data.column_names)
    return ray.data.from_huggingface(data.select_columns(list(dict.fromkeys(wanted))))


def _check_columns(where: str, wanted: Sequence[str], there: Sequence[str]) -> None:
    for column in wanted:
        if column not in there:
            raise DataError(f"{where}: no column {column!r}; {nearest(column, there)}")


def _write(table: pa.Table, out: str, sides: dict[str, str], key: str | None) -> pa.Table:
    """Write the images of some rows; columns id, digest and error, one row for each."""
    filesystem, base = open_filesystem(out)
    done: dict[str, list[str]] = {"id": [], "digest": [], "error": []}
    for row in table.to_pylist():
        name, digest, error = "", "", ""
        try:
            images = {side: _bytes(row, column) for side, column in sides.items()}
            digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in images.values())).hexdigest()
            name = digest[:24] if key is None else _safe(row.get(key))
            for side, data in images.items():
                path = f"{base}/{side}/{name}{_ending(name, data)}"
                info = filesystem.get_file_info(path)
                if info.type != fs.FileType.File or info.size != len(data):
                    put(filesystem, path, data)
        except DataError as failure:
            error = str(failure)
        for column, value in (("id", name), ("digest", digest), ("error", error)):
            done[column].append(value)
    return pa.table(done, schema=pa.schema([(column, pa.string()) for column in done]))


def _bytes(row: dict[str, Any], column: str) -> bytes:
    value = row.get(column)
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        return read_file(value["path"])
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        what = "nothing" if data is None or data == b"" else f"a {type(data).__name__}"
        raise DataError(f"column {column!r} holds {what} where an encoded image should be")
    return data


def _ending(name: str, data: bytes) -> str:
    """Of the format that the first bytes show; listings know images by it."""
    if data[8:12] == b"WEBP":
        return ".webp"
    for magic, ending in _MAGIC.items():
        if data.startswith(magic):
            return ending
    raise DataError(f"{name}: its bytes are of no image format that is known here")


def _safe(value: Any) -> str:
    """An id as a relative path that stays below its folder, without the ending of an image: pairs go by it."""
    text = str(value) if value is not None else ""
    parts = PurePosixPath(text).parts
    if not parts or text.startswith("/") or any(part.startswith(".") for part in parts):
        raise DataError(f"the id {text!r} cannot be a file name")
    path = PurePosixPath(*parts)
    return str(path.with_suffix("") if path.suffix.lower() in EXTENSIONS else path)

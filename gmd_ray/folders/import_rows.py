"""What an import takes, checked before Ray starts, and the files that its rows become: no Ray in here.

Rows come from strangers. Their ids become names below the output folder or nothing, and a path in a row is read only
where it lies below the data set itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from gmd_ray.errors import ConfigError, DataError, nearest
from gmd_ray.images.files.formats import EXTENSIONS, ending, refusal_by_name, sniff
from gmd_ray.images.listing import open_filesystem
from gmd_ray.images.safe_paths import safe_relative
from gmd_ray.images.walking import unwanted_folder
from gmd_ray.storage import absolute, get, put
from gmd_ray.text import one_line

SOURCE_KINDS = ("parquet", "wds", "hf")

_OF_ONE_ROW = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ)
"""Errors of a name, unlike those of a disk."""

WRITTEN = pa.schema(
    [
        ("id", pa.string()),
        ("digest", pa.string()),
        ("files", pa.list_(pa.string())),
        ("replaced", pa.bool_()),
        ("error", pa.string()),
    ]
)
"""What `write_rows` tells of each row; `files` are relative to the output folder."""


@dataclass(frozen=True)
class Import:
    """What to read, and where to."""

    kind: str
    """Of SOURCE_KINDS."""
    place: str
    out: str
    sides: dict[str, str]
    """`hq` and `lq` -> column of its images, those that are asked for."""
    key: str | None
    """Column of the ids; None for a hash of the images."""

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once."""
        return list(dict.fromkeys([*self.sides.values(), *([self.key] if self.key else [])]))


def check_import(source: str, out: str, hq: str | None = None, lq: str | None = None, key: str | None = None) -> Import:
    """Hold an import against what can be known without Ray; see `importing.import_images` for the arguments.

    Raises:
        ConfigError: for a source that cannot be told, an empty path, or no column.
        DataError: where nothing is there, and for Parquet columns that are not there or hold no images.
    """
    kind, colon, place = source.partition(":")
    if not colon or kind not in SOURCE_KINDS:
        raise ConfigError(f"{source}: give READER:PLACE; {nearest(kind, SOURCE_KINDS)}")
    for what, path in (("the place in --from", place), ("the output folder", out)):
        if not path.strip():
            raise ConfigError(f"import: {what} is empty")
    sides = {side: column for side, column in (("hq", hq), ("lq", lq)) if column}
    if not sides:
        raise ConfigError("import: name the column of the images, --hq COLUMN or --lq COLUMN, or both for pairs")
    if "://" not in place and kind != "hf":
        place = os.path.abspath(os.path.expanduser(place))
    take = Import(kind, place, absolute(out), sides, key or ("__key__" if kind == "wds" else None))
    open_filesystem(out)
    if kind != "hf":
        filesystem, path = open_filesystem(place)
        try:
            if filesystem.get_file_info(path).type == fs.FileType.NotFound:
                raise DataError(f"{source}: no such file or folder")
            schema = _parquet_schema(filesystem, path, source) if kind == "parquet" else None
        except OSError as error:
            raise DataError(f"{source}: cannot be read: {one_line(error)}") from error
        if schema is not None:
            check_columns(source, take, schema)
    return take


def check_columns(where: str, take: Import, schema: pa.Schema) -> None:
    """Hold the columns of an import against a table's.

    Raises:
        DataError: naming the nearest column, or the type of one that cannot hold what it should.
    """
    for column in take.columns:
        if column not in schema.names:
            raise DataError(f"{where}: no column {column!r}; {nearest(column, schema.names)}")
    problem = _column_problem(take.sides, take.key, schema)
    if problem:
        raise DataError(f"{where}: {problem}")


def _parquet_schema(filesystem: fs.FileSystem, path: str, where: str) -> pa.Schema:
    """That of the first file; whether the others have it is seen when they are read."""
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        files = sorted(info.path for info in infos if info.type == fs.FileType.File and info.extension == "parquet")
        if not files:
            raise DataError(f"{where}: holds no file that ends in .parquet")
        path = files[0]
    try:
        with filesystem.open_input_file(path) as stream:
            return pq.read_schema(stream)
    except (ValueError, pa.ArrowException) as error:  # an OSError is told by the caller
        raise DataError(f"{where}: {path}: not a Parquet file: {one_line(error)}") from error


def _column_problem(sides: dict[str, str], key: str | None, schema: pa.Schema) -> str:
    """Why these columns cannot be used, empty where they can; those that are absent are not looked at."""
    for column in sides.values():
        if column in schema.names and not _holds_images(schema.field(column)):
            found = _type_name(schema.field(column))
            return f"column {column!r} holds {found} where encoded images should be (binary, or a struct with bytes)"
    if key is not None and key in schema.names:
        field = schema.field(key)
        if _is_extension(field) or pa.types.is_nested(field.type):
            return f"column {key!r} holds {_type_name(field)} where ids should be (text or numbers)"
    return ""


def _holds_images(field: pa.Field) -> bool:
    kind = field.type
    if _is_extension(field):  # Ray's tensors and pickled objects among them
        return False
    if pa.types.is_struct(kind):
        return "bytes" in kind.names and _is_binary(kind.field("bytes").type)
    return _is_binary(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return pa.types.is_null(kind) or any(test(kind) for test in tests)


def _is_extension(field: pa.Field) -> bool:
    """Whether its type is one of Arrow's extensions, known to this process or not."""
    return isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {})


def _type_name(field: pa.Field) -> str:
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    named = (field.metadata or {}).get(b"ARROW:extension:name")
    return named.decode(errors="replace") if named else str(field.type)


def write_rows(table: pa.Table, take: Import) -> pa.Table:
    """Write the images of some rows; a table of WRITTEN, one row for each.

    A file that is there already with the same bytes stays; one with others is replaced, which is told.

    Raises:
        OSError: where the output cannot be written, whatever the row.
    """
    filesystem, base = open_filesystem(take.out)
    # Before a value is looked at: Ray's pickled objects are unpickled by that.
    problem = _column_problem(take.sides, take.key, table.schema)
    rows = [{}] * table.num_rows if problem else _selected(table, take).to_pylist()
    done = []
    for row in rows:
        told: dict[str, Any] = {"id": "", "digest": "", "files": [], "replaced": False, "error": problem}
        try:
            if not problem:
                told |= _write_row(row, take, filesystem, base)
        except DataError as failure:
            told["error"] = str(failure)
        except OSError as failure:
            if failure.errno not in _OF_ONE_ROW:
                raise
            told["error"] = f"{row.get(take.key or '')!r}: {failure.strerror}"
        done.append(told)
    return pa.Table.from_pylist(done, schema=WRITTEN)


def _selected(table: pa.Table, take: Import) -> pa.Table:
    """The columns that are asked for: what others hold is not touched."""
    return table.select([name for name in take.columns if name in table.schema.names])


def _write_row(row: dict[str, Any], take: Import, filesystem: fs.FileSystem, base: str) -> dict[str, Any]:
    images = {side: _bytes(row, column, take) for side, column in take.sides.items()}
    digest = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in images.values())).hexdigest()
    key = digest[:24] if take.key is None else _key(row.get(take.key))
    name = _without_ending(key)
    files = {f"{side}/{name}{_ending(key, data)}": data for side, data in images.items()}
    replaced = [_put_anew(filesystem, f"{base}/{file}", data) for file, data in files.items()]
    return {"id": name, "digest": digest, "files": list(files), "replaced": any(replaced)}


def _put_anew(filesystem: fs.FileSystem, path: str, data: bytes) -> bool:
    """Write a file unless it is there with these bytes; whether it was there with others."""
    info = filesystem.get_file_info(path)
    there = info.type == fs.FileType.File
    if there and info.size == len(data) and get(filesystem, path) == data:
        return False
    put(filesystem, path, data)
    return there


def _bytes(row: dict[str, Any], column: str, take: Import) -> bytes:
    value = row.get(column)
    if isinstance(value, dict) and value.get("bytes") is None and value.get("path"):
        return _beside(take, str(value["path"]))
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        what = "nothing" if data is None or data == b"" else f"a {type(data).__name__}"
        raise DataError(f"column {column!r} holds {what} where an encoded image should be")
    return data


def _beside(take: Import, path: str) -> bytes:
    """The file that a row names instead of holding its bytes, where it lies below the data set."""
    outside = DataError(f"a row names the file {path!r}, which is not below the data set, and is not read")
    if "://" in path or "\0" in path or (take.kind == "hf" and not os.path.isdir(os.path.expanduser(take.place))):
        raise outside
    filesystem, folder = open_filesystem(take.place)
    if filesystem.get_file_info(folder).type == fs.FileType.File:
        folder = folder.rpartition("/")[0]
    if isinstance(filesystem, fs.LocalFileSystem):
        folder = os.path.realpath(folder)
        path = os.path.realpath(os.path.join(folder, path))  # links resolved
        if os.path.commonpath([folder, path]) != folder:
            raise outside
    else:
        try:
            path = f"{folder}/{safe_relative(path.removeprefix(f'{folder}/'))}"
        except DataError as error:
            raise outside from error
    if filesystem.get_file_info(path).type != fs.FileType.File:
        raise DataError(f"a row names the file {path!r}, which is not there")
    with filesystem.open_input_stream(path, compression=None) as stream:
        data: bytes = stream.read()
        return data


def _key(value: Any) -> str:
    """An id as a relative path that stays below its folder, and that a listing shows."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else "" if value is None else str(value)
    try:
        parts = PurePosixPath(safe_relative(text)).parts
    except DataError as error:
        raise DataError(f"the id {text!r} cannot be a file name") from error
    hidden = [part for part in parts if part.startswith(".")] + [part for part in parts[:-1] if unwanted_folder(part)]
    if hidden:
        raise DataError(f"the id {text!r} cannot be a file name: a folder of images leaves out {hidden[0]!r}")
    return text


def _without_ending(key: str) -> str:
    """Pairs go by the name without the ending of an image."""
    path = PurePosixPath(key)
    return str(path.with_suffix("")) if path.suffix.lower() in EXTENSIONS else key


def _ending(key: str, data: bytes) -> str:
    """Of the format that the first bytes show; listings know images by it."""
    known = sniff(data)
    if known is None:
        raise DataError(f"{key}: its bytes are of no image format that is known here")
    # A raw file may begin as TIFF does, with a preview.
    refusal = known.refusal if known.instead else refusal_by_name(key) if known.name == "TIFF" else None
    if refusal:
        raise DataError(f"{key}: {refusal}")
    return ending(data, known)


def two_formats(take: Import, written: Sequence[str]) -> list[str]:
    """Files in the output folder that have the id of a written one, and another format: an earlier import's.

    Args:
        written: files relative to the output folder.
    """
    filesystem, base = open_filesystem(take.out)
    stems = {_without_ending(name) for name in written}
    there = set(written)
    found = []
    for side in take.sides:
        for info in filesystem.get_file_info(fs.FileSelector(f"{base}/{side}", recursive=True, allow_not_found=True)):
            name = f"{side}/{info.path[len(base) + len(side) + 2 :]}"
            known = PurePosixPath(name).suffix.lower() in EXTENSIONS
            if info.type == fs.FileType.File and known and name not in there and _without_ending(name) in stems:
                found.append(name)
    return sorted(found)

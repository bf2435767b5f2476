"""The parts of an import that need no Ray: checking its arguments, and writing the files of its rows.

Rows are untrusted. An id must be a name below the output folder, and a path in a row is read only if it lies below the
data set itself.
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
from gmd_ray.images.safe_paths import safe_relative
from gmd_ray.images.walking import unwanted_folder
from gmd_ray.storage import absolute, get, open_filesystem, put
from gmd_ray.text import one_line

SOURCE_KINDS = ("parquet", "wds", "hf")
"""Kinds of data sets that can be imported: Parquet, WebDataset, Hugging Face."""

_OF_ONE_ROW = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EINVAL, errno.EILSEQ)
"""Errors that are caused by the name of one file, not by the disk."""

WRITTEN = pa.schema(
    [
        ("id", pa.string()),
        ("digest", pa.string()),
        ("files", pa.list_(pa.string())),
        ("replaced", pa.bool_()),
        ("error", pa.string()),
    ]
)
"""The outcome of each row in `write_rows`; `files` are relative to the output folder."""


@dataclass(frozen=True)
class Import:
    """The source and destination of an import."""

    kind: str
    """One of SOURCE_KINDS."""
    place: str
    """Path, URL or hub name of the data set."""
    out: str
    """The output folder."""
    sides: dict[str, str]
    """`hq` or `lq` -> column of its images, for the requested sides."""
    key: str | None
    """Column of the ids; None for a hash of the images."""

    @property
    def columns(self) -> list[str]:
        """The columns to read, without duplicates."""
        return list(dict.fromkeys([*self.sides.values(), *([self.key] if self.key else [])]))


def check_import(source: str, out: str, hq: str | None = None, lq: str | None = None, key: str | None = None) -> Import:
    """Check the arguments of an import as far as possible without Ray; see `import_images.import_images`.

    Raises:
        ConfigError: the kind of the source is unknown, a path is empty, or no column is named.
        DataError: the source does not exist, or its Parquet columns are absent or hold no images.
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
    """Check that a table has the columns of an import.

    Raises:
        DataError: a column is absent, or its type cannot hold images or ids.
    """
    for column in take.columns:
        if column not in schema.names:
            raise DataError(f"{where}: no column {column!r}; {nearest(column, schema.names)}")
    problem = _column_problem(take.sides, take.key, schema)
    if problem:
        raise DataError(f"{where}: {problem}")


def _parquet_schema(filesystem: fs.FileSystem, path: str, where: str) -> pa.Schema:
    """Read the schema of the first Parquet file. The other files are checked when they are read."""
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        files = sorted(info.path for info in infos if info.type == fs.FileType.File and info.extension == "parquet")
        if not files:
            raise DataError(f"{where}: holds no file that ends in .parquet")
        path = files[0]
    try:
        with filesystem.open_input_file(path) as stream:
            return pq.read_schema(stream)
    except (ValueError, pa.ArrowException) as error:  # the caller reports an OSError
        raise DataError(f"{where}: {path}: not a Parquet file: {one_line(error)}") from error


def _column_problem(sides: dict[str, str], key: str | None, schema: pa.Schema) -> str:
    """Return the reason why these columns cannot be used; empty if they can. Absent columns are ignored."""
    for column in sides.values():
        if column in schema.names and not _holds_images(schema.field(column)):
            kind = _type_name(schema.field(column))
            return f"column {column!r} holds {kind} where encoded images should be (binary, or a struct with bytes)"
    if key is not None and key in schema.names:
        field = schema.field(key)
        if _is_extension(field) or pa.types.is_nested(field.type):
            return f"column {key!r} holds {_type_name(field)} where ids should be (text or numbers)"
    return ""


def _holds_images(field: pa.Field) -> bool:
    kind = field.type
    if _is_extension(field):  # such as Ray's tensors and pickled objects
        return False
    if pa.types.is_struct(kind):
        return "bytes" in kind.names and _is_binary(kind.field("bytes").type)
    return _is_binary(kind.value_type if pa.types.is_dictionary(kind) else kind)


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return pa.types.is_null(kind) or any(test(kind) for test in tests)


def _is_extension(field: pa.Field) -> bool:
    """Tell whether a field has an Arrow extension type, registered in this process or not."""
    return isinstance(field.type, pa.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {})


def _type_name(field: pa.Field) -> str:
    if isinstance(field.type, pa.BaseExtensionType):
        return str(field.type.extension_name)
    named = (field.metadata or {}).get(b"ARROW:extension:name")
    return named.decode(errors="replace") if named else str(field.type)


def write_rows(table: pa.Table, take: Import) -> pa.Table:
    """Write the images of some rows.

    An existing file with the same bytes is kept. One with other bytes is replaced, which the result reports.

    Returns:
        a table of WRITTEN, with one row for each.

    Raises:
        OSError: the output folder cannot be written.
    """
    filesystem, base = open_filesystem(take.out)
    # The types are checked before any value is read, since reading one of Ray's pickled objects unpickles it.
    problem = _column_problem(take.sides, take.key, table.schema)
    rows = [{}] * table.num_rows if problem else _selected(table, take).to_pylist()
    done = []
    for row in rows:
        outcome: dict[str, Any] = {"id": "", "digest": "", "files": [], "replaced": False, "error": problem}
        try:
            if not problem:
                outcome |= _write_row(row, take, filesystem, base)
        except DataError as failure:
            outcome["error"] = str(failure)
        except OSError as failure:
            if failure.errno not in _OF_ONE_ROW:
                raise
            outcome["error"] = f"{row.get(take.key or '')!r}: {failure.strerror}"
        done.append(outcome)
    return pa.Table.from_pylist(done, schema=WRITTEN)


def _selected(table: pa.Table, take: Import) -> pa.Table:
    """Select the requested columns, so that the values of others are never read."""
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
    """Write a file unless it exists with these bytes, and return whether it existed with others."""
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
    """Read the file that a row names instead of holding its bytes, if it lies below the data set."""
    outside = DataError(f"a row names the file {path!r}, which is not below the data set, and is not read")
    if "://" in path or "\0" in path or (take.kind == "hf" and not os.path.isdir(os.path.expanduser(take.place))):
        raise outside
    filesystem, folder = open_filesystem(take.place)
    if filesystem.get_file_info(folder).type == fs.FileType.File:
        folder = folder.rpartition("/")[0]
    if isinstance(filesystem, fs.LocalFileSystem):
        folder = os.path.realpath(folder)
        path = os.path.realpath(os.path.join(folder, path))  # resolves links, which may lead out of the folder
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
    """Convert an id to a relative path that stays below its folder and that listings do not hide."""
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
    """Remove the extension of an image from an id, as pairs are matched without extensions."""
    path = PurePosixPath(key)
    return str(path.with_suffix("")) if path.suffix.lower() in EXTENSIONS else key


def _ending(key: str, data: bytes) -> str:
    """Return the extension for the format of the first bytes, by which listings recognise images."""
    known = sniff(data)
    if known is None:
        raise DataError(f"{key}: its bytes are of no known image format")
    # A raw file may begin like a TIFF, so the extension in its id counts.
    refusal = known.refusal if known.instead else refusal_by_name(key) if known.name == "TIFF" else None
    if refusal:
        raise DataError(f"{key}: {refusal}")
    return ending(data, known)


def two_formats(take: Import, written: Sequence[str]) -> list[str]:
    """Find files of an earlier import that have the id of a written file and another format.

    Args:
        take: the import.
        written: the written files, relative to the output folder.

    Returns:
        the files, relative to the output folder, sorted.
    """
    filesystem, base = open_filesystem(take.out)
    stems = {_without_ending(name) for name in written}
    new = set(written)
    older = []
    for side in take.sides:
        for info in filesystem.get_file_info(fs.FileSelector(f"{base}/{side}", recursive=True, allow_not_found=True)):
            name = f"{side}/{info.path[len(base) + len(side) + 2 :]}"
            known = PurePosixPath(name).suffix.lower() in EXTENSIONS
            if info.type == fs.FileType.File and known and name not in new and _without_ending(name) in stems:
                older.append(name)
    return sorted(older)

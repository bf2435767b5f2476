"""A search for texts in every byte below a folder: compressed, packed and encoded too."""

from __future__ import annotations

import base64
import gzip
import io
import json
import sqlite3
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq


def forms(text: str) -> set[bytes]:
    """A text as it may stand in a file: plain, quoted for URLs and JSON, in two-byte characters, hex, base64."""
    raw = text.encode()
    plain = {raw, quote(text, safe="").encode(), json.dumps(text)[1:-1].encode(), text.encode("utf-16-le")}
    # In base64 a text stands in one of three ways, by its place modulo 3, without the characters that neighbours share.
    packed = {
        base64.b64encode(b"\0" * shift + raw)[(0, 2, 3)[shift] : 8 * (shift + len(raw)) // 6] for shift in range(3)
    }
    return plain | packed | {raw.hex().encode()}


def contents(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of a file and of what is packed into it."""
    yield name, data
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        yield f"{name} (rows)", "\n".join(_cells(table)).encode(errors="surrogatepass")
        yield f"{name} (schema)", str(table.schema).encode()
        metadata = [repr(value).encode() for value in (table.schema.metadata or {}).values()]
        yield f"{name} (metadata)", b"\n".join(metadata)
    elif data[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(data), f"{name} (unpacked)")
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from contents(archive.read(member), f"{name}/{member}")
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        yield f"{name} (texts)", b"\n".join(_compressed_texts(data))
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive.getmembers():
                if (file := archive.extractfile(entry)) is not None:
                    yield from contents(file.read(), f"{name}/{entry.name}")


def search(folder: Path, texts: Iterable[str]) -> dict[str, list[str]]:
    """Text -> the files below a folder that hold it in any form, or are named by it; texts that are nowhere are absent.

    A database is dumped too: a long value is in pieces on its pages.
    """
    wanted = {text: forms(text) for text in texts}
    found: dict[str, list[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        name = path.relative_to(folder).as_posix()
        data = path.read_bytes()
        pieces = [*contents(data, name), (f"{name} (its name)", name.encode(errors="surrogateescape"))]
        if data[:15] == b"SQLite format 3":
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                pieces.append((f"{name} (rows)", "\n".join(database.iterdump()).encode(errors="surrogatepass")))
        for where, piece in pieces:
            for text, shapes in wanted.items():
                if any(shape in piece for shape in shapes):
                    found.setdefault(text, []).append(where)
    return found


def _cells(table: pa.Table) -> Iterator[str]:
    """Every text of a table, in nested columns too, and bytes of images as the latter are in the file: uncompressed."""
    for column in table.columns:
        for value in column.to_pylist():
            if isinstance(value, bytes):
                yield value.decode("latin-1")
            elif value is not None:
                yield str(value)


def _compressed_texts(data: bytes) -> Iterator[bytes]:
    """The `zTXt` and `iTXt` chunks of a PNG file; its other texts stand there as they are."""
    at = 8
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        chunk = data[at + 8 : at + 8 + size]
        if kind == b"zTXt":
            yield zlib.decompress(chunk.partition(b"\0")[2][1:])
        at += 12 + size

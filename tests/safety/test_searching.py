"""The search for planted secrets finds them wherever they are: a search that cannot find proves nothing."""

from __future__ import annotations

import base64
import gzip
import json
import sqlite3
import zipfile
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.safety.searching import search

SECRET = "planted/secret+1"


def parquet(path: Path) -> None:
    rows = pa.table({"id": ["a", "b"], "nested": [{"x": ["none"]}, {"x": [f"in {SECRET}"]}], "n": [1, 2]})
    pq.write_table(rows, path, compression="zstd")


def parquet_metadata(path: Path) -> None:
    pq.write_table(pa.table({"n": [1]}).replace_schema_metadata({"key": f"{SECRET}"}), path)


def database(path: Path) -> None:
    with sqlite3.connect(path) as made:
        made.execute("create table t (value text)")
        for size in range(3900, 4100):  # the secret of some of them is cut by the end of a page
            made.execute("insert into t values (?)", ("x" * size + SECRET,))


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("model/data.json", json.dumps({"key": SECRET}))


def picture(path: Path) -> None:
    texts = PngInfo()
    texts.add_text("comment", SECRET, zip=True)
    Image.new("RGB", (4, 4)).save(path, "PNG", pnginfo=texts)


WRITERS = {
    "plain": lambda path: path.write_text(f"log line {SECRET}\n"),
    "url": lambda path: path.write_text(f"http://me:{quote(SECRET, safe='')}@host"),
    "base64": lambda path: path.write_bytes(base64.b64encode(b"user:" + SECRET.encode() + b"!")),
    "base64 at another place": lambda path: path.write_bytes(base64.b64encode(b"users:" + SECRET.encode() + b"!")),
    "base64 at a third place": lambda path: path.write_bytes(base64.b64encode(b"an user:" + SECRET.encode() + b"!")),
    "hex": lambda path: path.write_text(SECRET.encode().hex()),
    "gzip": lambda path: path.write_bytes(gzip.compress(SECRET.encode())),
    "zip": archive,
    "parquet": parquet,
    "metadata of parquet": parquet_metadata,
    "database": database,
    "text of a picture": picture,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_it_is_found(writer: str, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    WRITERS[writer](folder / "file")
    found = search(tmp_path, [SECRET, "another/secret+1"])
    assert found.keys() == {SECRET}
    assert all(where.startswith("deep/er/file") for where in found[SECRET])


def test_names_count(tmp_path: Path) -> None:
    (tmp_path / "runs of planted").mkdir()
    (tmp_path / "runs of planted" / "a").write_bytes(b"")
    assert search(tmp_path, ["planted"]) == {"planted": ["runs of planted/a (its name)"]}

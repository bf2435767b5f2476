"""The arguments that an import refuses, and the outcome of each row, tested without Ray."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmd_ray.cli import main
from gmd_ray.errors import DataError, ExitCode
from gmd_ray.folders import import_rows
from gmd_ray.folders.import_rows import Import, check_import, two_formats, write_rows
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.listing import list_images, read_file
from tests.images.files.test_formats import KINDS, picture
from tests.images.test_safe_paths import HOSTILE


def png(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).random((8, 8, 3), dtype=np.float32))


def take(tmp_path: Path, key: str | None = "id", place: str = "", **sides: str) -> Import:
    return Import("parquet", place or str(tmp_path / "set"), str(tmp_path / "out"), sides or {"hq": "image"}, key)


def written(rows: pa.Table, how: Import) -> list[dict[str, Any]]:
    return write_rows(rows, how).to_pylist()


@pytest.mark.parametrize("suffix", sorted(KINDS))
def test_every_format_that_folders_are_read_in(suffix: str, tmp_path: Path) -> None:
    kind, mode, options, _ = KINDS[suffix]
    buffer = io.BytesIO()
    picture(mode).save(buffer, kind, **options)
    [row] = written(pa.table({"id": ["a"], "image": [buffer.getvalue()]}), take(tmp_path))
    assert not row["error"]
    [image] = list_images(str(tmp_path / "out" / "hq"))
    assert f"hq/{image.id}" == row["files"][0]
    assert read_file(image.uri) == buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "key", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a", "a: a HEIC photo, which this program does not decode: convert it"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a", "a: a Canon raw file (CR3), which this program does not decode"),
        (b"\xff\x0a" + bytes(9), "a", "a: a JPEG XL picture, which this program does not decode"),
        (b"II*\0" + bytes(20), "a.nef", "a.nef: a Nikon raw file, which this program does not decode: develop it"),
        (b"hello world, no image", "a", "a: its bytes are of no known image format"),
        (b"%!PS-Adobe-3.0", "a.png", "a.png: its bytes are of no known image format"),
        (b"", "a", "column 'image' holds nothing where an encoded image should be"),
    ],
)
def test_bytes_that_are_no_image_here_say_what_they_are(data: bytes, key: str, reason: str, tmp_path: Path) -> None:
    rows = written(pa.table({"id": [key, "ok"], "image": [data, png(0)]}), take(tmp_path))
    assert rows[0]["error"].startswith(reason)
    assert not rows[1]["error"]
    assert [image.id for image in list_images(str(tmp_path / "out" / "hq"))] == ["ok.png"]


@pytest.mark.parametrize(
    "key", [*[key for key in HOSTILE if key != "\ud800.png"], ".hidden", "a/.b/c", "@eaDir/x", None]
)
def test_an_id_that_is_no_name_below_the_folder_is_refused(key: str | None, tmp_path: Path) -> None:
    rows = written(pa.table({"id": pa.array([key, "ok"], pa.string()), "image": [png(0), png(1)]}), take(tmp_path))
    assert "cannot be a file name" in rows[0]["error"]
    assert rows[0]["error"].isprintable()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "out/hq/ok.png"
    ]


def test_ids_of_other_types_and_with_endings(tmp_path: Path) -> None:
    how = take(tmp_path)
    for keys, names in (
        (pa.array([7, 8]), ["7", "8"]),
        (pa.array([b"a/b.JPG", b"v1.5"]), ["a/b", "v1.5"]),
        (pa.array(["x", "y.tiff"]).dictionary_encode(), ["x", "y"]),
    ):
        assert [row["id"] for row in written(pa.table({"id": keys, "image": [png(0), png(1)]}), how)] == names


def test_a_name_too_long_for_the_disk_is_its_row_alone(tmp_path: Path) -> None:
    rows = written(pa.table({"id": ["x" * 300, "ok"], "image": [png(0), png(1)]}), take(tmp_path))
    assert "File name too long" in rows[0]["error"]
    assert not rows[1]["error"]


def test_an_output_that_cannot_be_written_ends_it(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_rows, "put", full)
        with pytest.raises(OSError, match="No space left"):
            write_rows(pa.table({"id": ["a"], "image": [png(0)]}), take(tmp_path))


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def by_path(path: str) -> pa.Table:
    return pa.table({"id": ["a"], "image": pa.array([{"bytes": None, "path": path}], IMAGE)})


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A data set with loose files, and a private photo beside it."""
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "images" / "in.png").write_bytes(png(1))
    (tmp_path / "private.png").write_bytes(png(2))
    (tmp_path / "set_private").mkdir()
    (tmp_path / "set_private" / "x.png").write_bytes(png(2))
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "private.png")
    (tmp_path / "set" / "up").symlink_to("..")
    (tmp_path / "set" / "~").mkdir()
    pq.write_table(by_path("images/in.png"), tmp_path / "set" / "x.parquet")
    return tmp_path / "set"


@pytest.mark.parametrize("place", ["set", "set/x.parquet"])
def test_a_path_in_a_row_is_read_below_the_data_set(place: str, data_set: Path, tmp_path: Path) -> None:
    how = take(tmp_path, place=str(tmp_path / place))
    for path in ("images/in.png", str(data_set / "images" / "in.png"), "images/../images/in.png"):
        assert not written(by_path(path), how)[0]["error"]
        assert (tmp_path / "out" / "hq" / "a.png").read_bytes() == png(1)
    assert "is not there" in written(by_path("images/gone.png"), how)[0]["error"]
    assert "is not there" in written(by_path("images"), how)[0]["error"]
    assert "no known image format" in written(by_path("x.parquet"), how)[0]["error"]


@pytest.mark.parametrize(
    "path",
    [
        "{outside}/private.png",
        "../private.png",
        "images/../../private.png",
        "{outside}/set_private/x.png",
        "link.png",
        "up/private.png",
        "file://{outside}/private.png",
        "http://127.0.0.1:9/x.png",
        "memory://private/x.png",
        "images/in.png\0.png",
        "/etc/hostname",
        "/dev/zero",
    ],
)
@pytest.mark.parametrize("kind", ["parquet", "hf"])
def test_a_path_in_a_row_that_leads_elsewhere_is_not_read(
    path: str, kind: str, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Import(kind, str(data_set), str(tmp_path / "out"), {"hq": "image"}, "id")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    [row] = written(by_path(path.format(outside=tmp_path)), how)
    assert "is not below the data set, and is not read" in row["error"]
    assert not (tmp_path / "out").exists()


def test_a_data_set_on_a_hub_reads_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_bytes(png(0))
    [row] = written(by_path("x.png"), Import("hf", "someone/set", str(tmp_path / "out"), {"hq": "image"}, "id"))
    assert "is not read" in row["error"]


def test_a_path_on_other_storage_is_read_below_the_data_set_too(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pipe("/set/in.png", png(1))
    memory.pipe("/private.png", png(2))
    how = take(tmp_path, place="memory://set")
    assert not written(by_path("in.png"), how)[0]["error"]
    for path in ("../private.png", "/private.png", "memory://private.png"):
        assert "is not read" in written(by_path(path), how)[0]["error"]


def test_the_same_id_with_other_bytes_is_made_anew_and_told(tmp_path: Path) -> None:
    how, old = take(tmp_path), pa.table({"id": ["a", "b"], "image": [png(1), png(2)]})
    assert [row["replaced"] for row in written(old, how)] == [False, False]
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "hq").iterdir()}
    assert [row["replaced"] for row in written(old, how)] == [False, False]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "hq").iterdir()} == files
    same_size = png(1)[:-1] + b"?"
    rows = written(pa.table({"id": ["a", "b"], "image": [same_size, png(2)]}), how)
    assert [row["replaced"] for row in rows] == [True, False]
    assert (tmp_path / "out" / "hq" / "a.png").read_bytes() == same_size


def test_the_same_id_in_another_format_is_found(tmp_path: Path) -> None:
    how, buffer = take(tmp_path), io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    written(pa.table({"id": ["x/a", "b"], "image": [png(1), png(2)]}), how)
    rows = written(pa.table({"id": ["x/a", "c"], "image": [buffer.getvalue(), png(2)]}), how)
    assert two_formats(how, [file for row in rows for file in row["files"]]) == ["hq/x/a.png"]
    (tmp_path / "out" / "hq" / "x" / "a.png").unlink()
    assert two_formats(how, [file for row in rows for file in row["files"]]) == []


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemError('ran')",))


def objects(kind: str) -> pa.Array:
    """Columns of Ray's own types, as Ray writes them."""
    pytest.importorskip("ray.data")
    from ray.data.extensions import ArrowPythonObjectArray, ArrowTensorArray

    if kind == "tensors":
        return ArrowTensorArray.from_numpy(np.zeros((2, 4, 4, 3), np.uint8))
    return ArrowPythonObjectArray.from_objects([Bomb(), Bomb()])


@pytest.mark.parametrize("kind", ["tensors", "objects"])
@pytest.mark.parametrize("role", ["image", "id"])
def test_columns_of_rays_own_types_are_refused_and_never_unpickled(kind: str, role: str, tmp_path: Path) -> None:
    columns = {"id": pa.array(["a", "b"]), "image": pa.array([png(0), png(1)])} | {role: objects(kind)}
    table = pa.table(columns)
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "x.parquet")
    with pytest.raises(DataError, match=rf"column '{role}' holds ray\S+ where") as caught:
        check_import(f"parquet:{tmp_path}/set", str(tmp_path / "out"), hq="image", key="id")
    assert "\n" not in str(caught.value)
    # A later file may differ from the first, which was checked.
    rows = written(table, take(tmp_path))
    assert [row["error"].startswith(f"column '{role}' holds ray") for row in rows] == [True, True]
    other = pa.table({"id": ["a"], "image": [png(0)]}).append_column("extra", objects(kind)[:1])
    assert not written(other, take(tmp_path))[0]["error"]  # columns that are not asked for are not touched


@pytest.mark.parametrize(
    ("columns", "wanted", "message"),
    [
        ({"image": [1], "id": ["a"]}, {}, "column 'image' holds int64 where encoded images should be"),
        ({"image": ["a.png"], "id": ["a"]}, {}, "column 'image' holds string where"),
        ({"image": [{"url": "x"}], "id": ["a"]}, {}, r"column 'image' holds struct<.*> where"),
        ({"image": [b"x"], "id": [["a"]]}, {}, r"column 'id' holds list<.*> where ids should be"),
        ({"image": [b"x"], "id": ["a"]}, {"hq": "imag"}, "no column 'imag'; did you mean 'image'"),
        ({"image": [b"x"], "id": ["a"]}, {"key": "idd"}, "no column 'idd'; did you mean 'id'"),
    ],
)
def test_columns_are_checked_before_ray_starts(
    columns: dict,
    wanted: dict,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    given = {"hq": "image", "key": "id"} | wanted
    with pytest.raises(DataError, match=message):
        check_import(f"parquet:{tmp_path}/x.parquet", str(tmp_path / "out"), **given)
    no_ray(monkeypatch)
    command = ["import", "--from", f"parquet:{tmp_path}/x.parquet", "-o", str(tmp_path / "out")]
    assert main([*command, *(word for key, value in given.items() for word in (f"--{key}", value))]) == ExitCode.DATA
    assert capsys.readouterr().err.count("\n") == 1


def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gmd_ray.ray_utils.session.ray_session", lambda *given: pytest.fail("Ray starts"))


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--from", "csv:", "-o", "out", "--hq", "a"], 2, "csv:: give READER:PLACE; known: hf, parquet, wds"),
        (["--from", "csv:x.csv", "-o", "out", "--hq", "a"], 2, "csv:x.csv: give READER:PLACE"),
        (["--from", "", "-o", "out", "--hq", "a"], 2, "give READER:PLACE"),
        (["--from", "parquet:", "-o", "out", "--hq", "a"], 2, "the place in --from is empty"),
        (["--from", "hf:", "-o", "out", "--hq", "a"], 2, "the place in --from is empty"),
        (["--from", "wds:/nowhere", "-o", "out", "--hq", "a"], 3, "no such file or folder"),
        (["--from", "wds:/", "-o", "", "--hq", "a"], 2, "the output folder is empty"),
        (["--from", "wds:/", "-o", "zzz://x", "--hq", "a"], 3, "zzz://x: cannot be opened"),
        (["--from", "parquet:ftp://127.0.0.1:9/x", "-o", "out", "--hq", "a"], 3, "cannot be opened: .*refused"),
        (["--from", "wds:/", "-o", "out"], 2, "name the column of the images"),
    ],
)
def test_what_can_be_known_is_refused_before_ray_starts(
    words: list[str], status: int, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    no_ray(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert main(["import", *words]) == status
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert re.search(message, told)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_parquet_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no file that ends in \.parquet"):
        check_import(f"parquet:{tmp_path}", "out", hq="a")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(DataError, match=r"x\.parquet: not a Parquet file") as caught:
        check_import(f"parquet:{tmp_path}", "out", hq="a")
    assert "\n" not in str(caught.value)


def test_shared_input_import_avif(tmp_path: Path) -> None:
    file = Path(__file__).parents[2].parent / "shared" / "inputs" / "import_avif" / "x.parquet"
    if not file.is_file():
        pytest.skip("shared inputs are not here")
    how = check_import(f"parquet:{file}", str(tmp_path / "out"), lq="image", key="id")
    assert [row["error"] for row in written(pq.read_table(file), how)] == [""] * pq.read_table(file).num_rows
    assert {Path(image.id).suffix for image in list_images(str(tmp_path / "out" / "lq"))} == {".avif"}

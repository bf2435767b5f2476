"""Parquet, WebDataset and Hugging Face data in their real formats, imported by Ray Data into folders of pairs."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import ConfigError, DataError, ExitCode
from gmd_ray.folders.import_images import Imported, import_images
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.listing import list_images, read_file
from gmd_ray.images.sets.pairs import list_pairs

pytestmark = pytest.mark.usefixtures("ray_session")


def png(seed: int, size: int = 8) -> bytes:
    return encode_png(np.random.default_rng(seed).random((size, size, 3), dtype=np.float32))


def jpg(seed: int) -> bytes:
    return cv2.imencode(".jpg", np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8))[1].tobytes()


IDS = [f"clip{i % 2}/v1.{i}" for i in range(5)]


def parquet(folder: Path, **columns: list) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table.slice(0, 3), folder / "a.parquet")
    pq.write_table(table.slice(3), folder / "b.parquet")
    return f"parquet:{folder}"


def check_pairs(out: Path, hq: list[bytes], lq: list[bytes], ids: list[str]) -> None:
    pairs = list_pairs(str(out / "hq"), str(out / "lq"))
    assert [pair.id.rpartition(".")[0] for pair in pairs] == sorted(ids)
    order = {key: i for i, key in enumerate(ids)}
    for pair in pairs:
        i = order[pair.id.rpartition(".")[0]]
        assert (read_file(pair.hq), read_file(pair.lq or "")) == (hq[i], lq[i])


def test_parquet_by_its_id_column_and_again(tmp_path: Path) -> None:
    hq, lq = [png(i) for i in range(5)], [jpg(i) for i in range(5)]
    source = parquet(tmp_path / "rows", name=[f"{key}.png" for key in IDS], clean=hq, bad=lq, other=[0] * 5)
    out = tmp_path / "out"
    assert import_images(source, str(out), hq="clean", lq="bad", key="name") == Imported(5, 0)
    check_pairs(out, hq, lq, IDS)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    first = min(times)
    first.write_bytes(b"torn")
    import_images(source, str(out), hq="clean", lq="bad", key="name")
    check_pairs(out, hq, lq, IDS)
    assert {path for path, then in times.items() if path.stat().st_mtime_ns != then} == {first}


def test_without_ids_the_content_names_an_image(tmp_path: Path) -> None:
    images = [png(i) for i in (0, 1, 2, 3, 1)]
    import_images(parquet(tmp_path / "one", image=images), str(tmp_path / "a"), lq="image")
    found = import_images(parquet(tmp_path / "two", image=images[::-1]), str(tmp_path / "b"), lq="image")
    assert found == Imported(4, 1)
    names = [[image.id for image in list_images(str(tmp_path / out / "lq"))] for out in "ab"]
    assert names[0] == names[1]
    assert len(names[0]) == 4


def test_webdataset_shards(tmp_path: Path) -> None:
    hq, lq = [png(i) for i in range(5)], [jpg(i) for i in range(5)]
    keys = [f"{i:06d}" for i in range(5)]
    shards = tmp_path / "shards"
    shards.mkdir()
    for shard, rows in enumerate(((0, 1, 2), (3, 4))):
        with tarfile.open(shards / f"train-{shard:06d}.tar", "w") as tar:
            for i in rows:
                for ending, data in (("hq.png", hq[i]), ("lq.jpg", lq[i]), ("json", b'{"a": 1}')):
                    entry = tarfile.TarInfo(f"{keys[i]}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    out = tmp_path / "out"
    assert import_images(f"wds:{shards}", str(out), hq="hq.png", lq="lq.jpg") == Imported(5, 0)
    check_pairs(out, hq, lq, keys)
    single = import_images(f"wds:{shards}/train-000001.tar", str(tmp_path / "single"), lq="lq.jpg")
    assert single == Imported(2, 0)
    with pytest.raises(DataError, match=r"5 rows cannot be used: column 'hq\.jpg' holds nothing"):
        import_images(f"wds:{shards}", str(tmp_path / "none"), hq="hq.jpg")


def test_hugging_face_images(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    hq, lq = [png(i) for i in range(5)], [jpg(i) for i in range(5)]
    loose = tmp_path / "saved" / "images" / "loose.jpg"  # only what lies below the data set is read
    loose.parent.mkdir(parents=True)
    loose.write_bytes(lq[4])
    features = datasets.Features({"clean": datasets.Image(), "bad": datasets.Image(), "name": datasets.Value("string")})
    rows = {
        "clean": [{"bytes": data, "path": None} for data in hq],
        "bad": [{"bytes": data, "path": "a.jpg"} for data in lq[:4]] + [{"bytes": None, "path": str(loose)}],
        "name": IDS,
    }
    data = datasets.Dataset.from_dict(rows, features=features)
    data.save_to_disk(str(tmp_path / "saved"))
    out = tmp_path / "out"
    source = f"hf:{tmp_path}/saved"
    assert import_images(source, str(out), hq="clean", lq="bad", key="name") == Imported(5, 0)
    check_pairs(out, hq, lq, IDS)
    with pytest.raises(DataError, match="no column 'cleen'; did you mean 'clean'"):
        import_images(source, str(out), hq="cleen")
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match="holds the splits train; name the folder"):
        import_images(f"hf:{tmp_path}/splits", str(out), hq="clean")


def test_rows_that_cannot_be_used_are_told_in_one_line(tmp_path: Path) -> None:
    good = [png(i) for i in range(4)]
    out = str(tmp_path / "out")
    for name, columns, message in (
        ("empty", {"image": [*good, b""], "id": list("abcde")}, "1 rows cannot be used: column 'image' holds nothing"),
        (
            "text",
            {"image": [*good, b"hello world, no image"], "id": list("abcde")},
            "e: its bytes are of no known image",
        ),
        ("heic", {"image": [*good, b"....ftypheic"], "id": list("abcde")}, "1 rows cannot be used: e: a HEIC photo"),
        ("null", {"image": [*good, png(9)], "id": [*"abcd", "a\0b"]}, r"the id 'a\x00b' cannot be a file name"),
        ("twice", {"image": [*good, png(9)], "id": list("abcda")}, "two rows have the id 'a' and different images"),
        ("above", {"image": [*good, png(9)], "id": [*"abcd", "../x"]}, "the id '../x' cannot be a file name"),
        ("type", {"image": [1] * 5, "id": list("abcde")}, "column 'image' holds int64 where"),
    ):
        with pytest.raises(DataError) as caught:
            import_images(parquet(tmp_path / name, **columns), f"{out}/{name}", hq="image", key="id")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "x.png").exists()


def test_a_row_that_names_a_private_file_gets_nothing(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(png(7))
    rows = [{"bytes": png(0), "path": None}] * 4 + [{"bytes": None, "path": str(tmp_path / "private.png")}]
    with pytest.raises(DataError, match=r"private\.png', which is not below the data set, and is not read"):
        import_images(parquet(tmp_path / "rows", image=rows, id=list("abcde")), str(tmp_path / "out"), hq="image")
    written = {path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {png(0)}


def test_an_id_with_other_bytes_or_in_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    first = parquet(tmp_path / "first", image=[png(i) for i in range(5)], id=list("abcde"))
    assert import_images(first, out, hq="image", key="id") == Imported(5, 0)
    other = parquet(tmp_path / "other", image=[png(9), *(png(i) for i in range(1, 5))], id=list("abcde"))
    assert main(["import", "--from", other, "-o", out, "--hq", "image", "--key", "id"]) == 0
    assert "5 images written" in (told := capsys.readouterr().out)
    assert "; 1 took the place of files with other bytes" in told
    assert (tmp_path / "out" / "hq" / "a.png").read_bytes() == png(9)
    third = parquet(tmp_path / "third", image=[jpg(0), *(png(i) for i in range(1, 5))], id=list("abcde"))
    with pytest.raises(DataError, match=r"1 ids have an image of an earlier import too, .*\(hq/a\.png\)"):
        import_images(third, out, hq="image", key="id")


def test_what_ray_cannot_read_is_one_line(tmp_path: Path) -> None:
    source = parquet(tmp_path / "rows", image=[png(i) for i in range(5)], id=list("abcde"))
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "rows" / "c.parquet")  # the others have the column
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "x.tar").write_bytes(b"no tar" * 200)
    for given, column in ((source, "image"), (f"wds:{tmp_path}/torn", "png")):
        with pytest.raises(DataError) as caught:
            import_images(given, str(tmp_path / "out"), hq=column)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'parquet'"):
        import_images("parkett:/x", "out", hq="a")
    with pytest.raises(ConfigError, match="--hq COLUMN or --lq COLUMN"):
        import_images("parquet:/x", "out")
    with pytest.raises(DataError, match="no such file or folder"):
        import_images(f"wds:{tmp_path}/nowhere", "out", hq="a")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'gmd_ray\[hf\]'"):
        import_images("hf:a/b", "out", hq="a")


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parquet(tmp_path / "rows", image=[png(i) for i in range(5)])
    assert main(["import", "--from", source, "-o", str(tmp_path / "out"), "--lq", "image"]) == 0
    assert "5 images written" in capsys.readouterr().out
    assert main(["import", "--from", source, "-o", str(tmp_path / "out"), "--lq", "imag"]) == ExitCode.DATA
    assert "did you mean 'image'" in capsys.readouterr().err

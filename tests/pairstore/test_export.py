from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.pairstore.export import export_pairs
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.totals import Totals
from tests.generation.shelf import fill, finish, ok_row
from tests.generation.world import World
from tests.images.test_safe_paths import HOSTILE

Finished = tuple[World, Totals]


def accepted_ids(world: World, threshold: float) -> set[str]:
    return {key for key, row in world.rows().items() if row["status"] == "ok" and float(row["score"]) >= threshold}  # type: ignore[arg-type]


@pytest.fixture
def threshold(finished: Finished) -> float:
    """The middle score: half of the pairs are accepted, the one at the threshold among them."""
    scores = sorted(float(row["score"]) for row in finished[0].rows().values() if row["status"] == "ok")  # type: ignore[arg-type]
    return scores[len(scores) // 2]


def test_parquet(finished: Finished, threshold: float, tmp_path: Path) -> None:
    world, _ = finished
    count = export_pairs(world.store, str(tmp_path / "out"), threshold, "parquet")
    table = pq.read_table(tmp_path / "out")
    assert set(table["id"].to_pylist()) == accepted_ids(world, threshold)
    assert count == table.num_rows == len(accepted_ids(world, threshold))
    assert table.schema.equals(PAIR_SCHEMA)
    rows = world.rows()
    for row in table.to_pylist():
        assert row == rows[row["id"]]


def test_folders(finished: Finished, threshold: float, tmp_path: Path) -> None:
    world, _ = finished
    wanted = accepted_ids(world, threshold)
    assert export_pairs(world.store, str(tmp_path), threshold, "folders") == len(wanted)
    names = {key if key.endswith(".png") else f"{key}.png" for key in wanted}
    assert any("/" in name for name in names)
    for folder in ("lq", "pseudo_target"):
        assert {file.relative_to(tmp_path / folder).as_posix() for file in (tmp_path / folder).rglob("*.png")} == names
    key = next(key for key in wanted if key.startswith("deep/er/"))
    assert (tmp_path / "pseudo_target" / key).read_bytes() == world.rows()[key]["pseudo_target"]
    assert (tmp_path / "lq" / key).read_bytes() == world.rows()[key]["lq"]


def test_lower_may_be_better(finished: Finished, threshold: float, tmp_path: Path) -> None:
    world, books = finished
    count = export_pairs(world.store, str(tmp_path), threshold, "parquet", higher_is_better=False)
    assert count == books.ok - len(accepted_ids(world, threshold)) + 1  # the one at the threshold is in both


def test_refusals(finished: Finished, tmp_path: Path) -> None:
    store = finished[0].store
    with pytest.raises(ConfigError, match="layout=folder: did you mean 'folders'"):
        export_pairs(store, str(tmp_path), 1.0, "folder")
    with pytest.raises(DataError, match="no pair is accepted at threshold 10"):
        export_pairs(store, str(tmp_path), 10.0)
    with pytest.raises(DataError, match="no pair store here"):
        export_pairs(str(tmp_path), str(tmp_path / "out"), 1.0)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is not empty"):
        export_pairs(store, str(tmp_path), 1.0)


@pytest.mark.parametrize("layout", ["parquet", "folders"])
def test_a_store_that_is_not_whole_is_one_line(layout: str, tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    rows = [ok_row(f"{i}.png", 5.0) for i in range(3)]
    fill(store, [rows])
    finish(store, rows)
    store.delete("manifest.json")
    inputs = {"count": 2, "limit": 2, "stranger_ids": ["0.png"]}
    store.write("settings.json", {**store.read("settings.json"), "inputs": inputs})
    assert export_pairs(store.url, str(tmp_path / "whole"), 4.2, layout) == 2
    [part] = Path(store.rows_path).iterdir()
    whole = part.read_bytes()
    column = pq.ParquetFile(part).metadata.row_group(0).column(PAIR_SCHEMA.get_field_index("pseudo_target"))
    start = column.data_page_offset
    part.write_bytes(whole[:start] + b"\xff" * 8 + whole[start + 8 :])  # the head of a page of images
    with pytest.raises(DataError, match=r"cannot be read .*`gmd-ray verify` names it"):
        export_pairs(store.url, str(tmp_path / "half"), 4.2, layout)
    part.write_bytes(whole)
    fill(store, [rows[1:2]])
    with pytest.raises(DataError, match="1 rows are there twice after a crash; run generate again"):
        export_pairs(store.url, str(tmp_path / "twice"), 4.2, layout)
    Path(store.rows_path, "part-torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-torn.parquet.* `gmd-ray verify` names it"):
        export_pairs(store.url, str(tmp_path / "torn"), 4.2, layout)
    assert not (tmp_path / "torn").exists()


@pytest.mark.parametrize("key", [key for key in HOSTILE if key != "\ud800.png"])
def test_an_id_that_leads_elsewhere_is_refused_before_anything_is_written(key: str, tmp_path: Path) -> None:
    """A store may be somebody else's."""
    store = PairStore(str(tmp_path / "a" / "pairs"))
    rows = [ok_row(key, 5.0), ok_row("ok.png", 5.0)]
    fill(store, [rows])
    finish(store, rows)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"is not a path below its folder.* use the parquet layout") as caught:
        export_pairs(store.url, str(tmp_path / "a" / "b" / "out"), 4.0)
    assert str(caught.value).isprintable()
    assert set(tmp_path.rglob("*")) == before
    assert export_pairs(store.url, str(tmp_path / "parquet"), 4.0, "parquet") == 2


def test_ids_that_would_be_one_file_are_refused(tmp_path: Path) -> None:
    for i, (one, other, message) in enumerate(
        [("a", "a.png", "an added .png alone"), ("a.png", "a.png/b.jpg", "a.png is an image, and the folder of")]
    ):
        store = PairStore(str(tmp_path / str(i)))
        rows = [ok_row(one, 5.0), ok_row(other, 5.0)]
        fill(store, [rows])
        finish(store, rows)
        with pytest.raises(DataError, match=message):
            export_pairs(store.url, str(tmp_path / "out"), 4.0)
        assert not (tmp_path / "out").exists()


def test_an_empty_destination_is_not_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    rows = [ok_row("a.png", 5.0)]
    fill(store, [rows])
    finish(store, rows)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match="an empty path"):
        export_pairs(store.url, "", 4.0)
    assert list((tmp_path / "empty").iterdir()) == []

"""The pair store as other tools read it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from gmd_ray.errors import DataError
from gmd_ray.pairstore.schema import PAIR_SCHEMA, FidelityBound, accepted, fidelity_bound, rows_dataset

SCORES = np.round(np.linspace(3.0, 5.4, 25), 1).tolist()  # 3.0, 3.1, ... with 4.2 among them


def row(index: int, score: float | None, status: str = "ok") -> dict:
    values = dict.fromkeys(PAIR_SCHEMA.names)
    return values | {
        "id": f"{index:03}.png", "uri": f"/in/{index:03}.png", "status": status, "lq": b"lq", "score": score,
        "width": 64, "height": 48, "attempts": 1,
    }  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """25 finished rows in five parts of rising score, two failed rows, and files that are not parts."""
    rows = tmp_path / "pairs" / "rows"
    rows.mkdir(parents=True)
    for part in range(5):
        table = pa.Table.from_pylist([row(i, SCORES[i]) for i in range(part * 5, part * 5 + 5)], PAIR_SCHEMA)
        pq.write_table(table, rows / f"part-{part:05}.parquet")
    failed = [row(25, None, "failed"), row(26, 5.0, "failed")]
    pq.write_table(pa.Table.from_pylist(failed, PAIR_SCHEMA), rows / "part-00005.parquet")
    (rows / "part-00006.parquet.tmp").write_bytes(b"half written")
    (rows / "_SUCCESS").write_bytes(b"")
    return tmp_path / "pairs"


def test_schema_is_the_documented_table() -> None:
    """The table of docs/store-format.md, written a second time: a change here is a change of an interface."""
    expected = {
        "string": "id uri status error_stage error_type error teacher student scorer digest",
        "binary": "lq restored pseudo_target",
        "int32": "width height attempts",
        "int64": "bytes",
        "timestamp[us, tz=UTC]": "modified",
        "float": "score fidelity seconds_restore seconds_project seconds_score",
    }
    assert {name: str(PAIR_SCHEMA.field(name).type) for name in PAIR_SCHEMA.names} == {
        name: kind for kind, names in expected.items() for name in names.split()
    }


def test_reads_parts_alone_in_order(store: Path) -> None:
    dataset = rows_dataset(str(store))
    assert dataset.schema == PAIR_SCHEMA
    assert dataset.to_table(columns=["id"])["id"].to_pylist() == [f"{i:03}.png" for i in range(27)]
    local = rows_dataset(f"{store}/", pyarrow.fs.LocalFileSystem())
    assert local.files == dataset.files


@pytest.mark.parametrize("threshold", [2.0, 4.2, 4.25, 5.4, 6.0])
def test_gate(store: Path, threshold: float) -> None:
    """The score equal to the threshold is accepted both ways, though float32 4.2 is below the double 4.2."""
    dataset = rows_dataset(str(store))
    for higher_is_better in (True, False):
        expected = [s for s in SCORES if (s >= threshold if higher_is_better else s <= threshold)]
        scores = dataset.to_table(columns=["score"], filter=accepted(threshold, higher_is_better))["score"]
        assert np.allclose(scores.to_numpy(), expected)
        assert dataset.count_rows(filter=accepted(threshold, higher_is_better)) == len(expected)


def test_gate_is_pushed_down_into_the_scan(store: Path) -> None:
    """Row groups are ruled out by their statistics: for 4.2 of rising scores, two parts of six are never read."""
    read = [
        fragment.path
        for fragment in rows_dataset(str(store)).get_fragments()
        if fragment.split_by_row_group(accepted(4.2, True))
    ]
    assert [re.findall(r"part-0000(\d)", path)[0] for path in read] == ["2", "3", "4"]


def test_a_score_that_is_no_number_is_not_accepted(store: Path) -> None:
    table = pa.Table.from_pylist([row(40, float("nan")), row(41, None)], PAIR_SCHEMA)
    pq.write_table(table, store / "rows" / "part-00009.parquet")
    for higher_is_better in (True, False):
        ids = rows_dataset(str(store)).to_table(columns=["id"], filter=accepted(4.2, higher_is_better))["id"]
        assert not {"040.png", "041.png"} & set(ids.to_pylist())


def test_the_second_opinion_is_part_of_the_view(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    for part, closeness in enumerate((20.0, 30.0, 40.0)):
        table = pa.Table.from_pylist(
            [row(part * 2 + i, 5.0) | {"fidelity": closeness + i} for i in (0, 1)], PAIR_SCHEMA
        )
        pq.write_table(table, rows / f"part-{part}.parquet")
    pq.write_table(pa.Table.from_pylist([row(9, 5.0)], PAIR_SCHEMA), rows / "part-9.parquet")  # no value
    dataset = rows_dataset(str(tmp_path))

    def ids(bound: FidelityBound | None) -> list[str]:
        return dataset.to_table(columns=["id"], filter=accepted(4.2, True, (), bound))["id"].to_pylist()

    assert len(ids(None)) == 7
    assert ids(FidelityBound("psnr", 31.0)) == ["003.png", "004.png", "005.png"]
    assert ids(FidelityBound("lpips", 31.0)) == ["000.png", "001.png", "002.png", "003.png"]
    view = accepted(4.2, True, (), FidelityBound("psnr", 31.0))
    read = [f.path for f in dataset.get_fragments() if f.split_by_row_group(view)]
    assert not any("part-0" in path for path in read), "pushed down into the scan"


def test_a_store_older_than_the_column_is_read_as_before(store: Path) -> None:
    for part in (store / "rows").glob("part-*.parquet"):
        pq.write_table(pq.read_table(part, partitioning=None).drop_columns(["fidelity"]), part)
    dataset = rows_dataset(str(store))
    assert dataset.to_table(filter=accepted(4.2, True)).num_rows == 13
    assert dataset.to_table(columns=["fidelity"])["fidelity"].null_count == 27


def test_a_bound_needs_the_column_it_bounds() -> None:
    assert fidelity_bound(None, "psnr", "none", "x") is None
    assert str(fidelity_bound(28, None, "psnr", "x")) == "psnr >= 28"
    assert str(fidelity_bound(0.2, "lpips", "lpips", "x")) == "lpips <= 0.2"
    for metric, recorded in (("psnr", "none"), (None, "none"), ("psnr", "ssim")):
        with pytest.raises(DataError, match=f"s3://b/pairs: its rows were made with scorer.fidelity={recorded}"):
            fidelity_bound(28, metric, recorded, "s3://b/pairs")


def test_missing_and_wider_columns_are_read_as_the_schema(store: Path) -> None:
    """Writers differ: a column may be left out, and strings may be large ones."""
    table = pa.Table.from_pylist([row(50, 5.4)], PAIR_SCHEMA).drop_columns(["restored"])
    wide = {"id": pa.large_string(), "lq": pa.large_binary()}
    table = table.cast(pa.schema([(f.name, wide.get(f.name, f.type)) for f in table.schema]))
    pq.write_table(table, store / "rows" / "part-00050.parquet")
    [last] = rows_dataset(str(store)).to_table(filter=ds.field("id") == "050.png").to_pylist()
    assert last["restored"] is None
    assert last["lq"] == b"lq"


def test_no_store(tmp_path: Path) -> None:
    for make in (lambda: None, lambda: (tmp_path / "rows").mkdir()):
        make()
        with pytest.raises(DataError, match=f"{tmp_path}: no pair store here"):
            rows_dataset(str(tmp_path))

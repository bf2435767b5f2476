"""The yield curve of a store, without its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import DataError, ExitCode
from gmd_ray.pairstore.store import PairStore
from gmd_ray.pairstore.thresholds import PAPER_PASS_RATES, read_gate
from tests.generation.shelf import failed_row, fill, finish, ok_row

SCORES = [3.9, 4.2, 4.2, 4.5, 5.0, 5.5]


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    store = PairStore(str(tmp_path / "pairs"))
    rows = [ok_row(f"{i}.png", score, fidelity=20.0 + i) for i, score in enumerate(SCORES)] + [failed_row("x.png")]
    fill(store, [rows[:4], rows[4:]])
    finish(store, rows, threshold=4.2, fidelity="psnr")
    return store


def test_the_curve_counts_what_the_view_admits(store: PairStore) -> None:
    gate = read_gate(store)
    assert (gate.threshold, gate.metric, len(gate.scores)) == (4.2, "nima", 6)
    for threshold, count in [*gate.curve(), (4.2, 5), (3.0, 6), (6.0, 0)]:
        assert gate.admitted(threshold) == count
        assert count == sum(np.float32(s) >= np.float32(threshold) for s in SCORES), threshold
    curve = gate.curve()
    assert (4.2, 5) in curve
    assert [n for _, n in curve] == sorted((n for _, n in curve), reverse=True), "ever stricter"


def test_lower_may_be_better(tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    rows = [ok_row(f"{i}.png", score) for i, score in enumerate(SCORES)]
    fill(store, [rows])
    finish(store, rows, higher=False, metric="niqe")
    gate = read_gate(store, 4.2)
    assert gate.admitted(4.2) == 3
    assert [n for _, n in gate.curve()] == sorted((n for _, n in gate.curve()), reverse=True)
    assert "<= 4.2" in gate.text()
    assert "the paper's rates are on another scale" in gate.text()


def test_the_second_opinion(store: PairStore) -> None:
    gate = read_gate(store, 4.2, limit=22.0)
    assert len(gate.scores) == 6
    assert gate.admitted(4.2) == 4
    assert "psnr >= 22" in gate.text()
    rows = [ok_row("0.png", 5.0)]
    bare = PairStore(f"{store.path}-bare")
    fill(bare, [rows])
    finish(bare, rows)
    with pytest.raises(DataError, match=r"made with scorer\.fidelity=none"):
        read_gate(bare, 4.2, limit=22.0)


def test_ids_and_scores_alone_are_read(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Spy:
        def __init__(self, dataset: ds.Dataset) -> None:
            self._dataset = dataset

        def to_table(self, columns: list[str], **kwargs: Any) -> Any:
            asked.append(columns)
            return self._dataset.to_table(columns=columns, **kwargs)

    from gmd_ray.pairstore import view as module

    real = module.rows_dataset
    monkeypatch.setattr(module, "rows_dataset", lambda *args: Spy(real(*args)))
    read_gate(store, 4.4, 21.0)
    assert asked == [["id", "score"], ["id", "score"]]


@pytest.fixture
def unfinished(tmp_path: Path) -> PairStore:
    store = PairStore(str(tmp_path / "going on"))
    rows = [ok_row("0.png", 5.0)]
    fill(store, [rows])
    finish(store, rows)
    store.delete("manifest.json")
    return store


def test_a_run_that_goes_on(unfinished: PairStore) -> None:
    assert read_gate(unfinished, 4.2).admitted(4.2) == 1
    fill(unfinished, [[ok_row("0.png", 5.0), ok_row("gone.png", 5.0)]])  # "0.png" twice, after a crash
    assert read_gate(unfinished, 4.2).admitted(4.2) == 2
    saved = unfinished.read("settings.json")
    unfinished.write("settings.json", {**saved, "inputs": {"count": 1, "limit": None, "stranger_ids": ["gone.png"]}})
    assert read_gate(unfinished, 4.2).admitted(4.2) == 1
    with pytest.raises(DataError, match="no finished run says which threshold; give --threshold"):
        read_gate(unfinished)


def test_a_torn_part_is_one_line(store: PairStore) -> None:
    Path(store.rows_path, "part-torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-torn.parquet.* `gmd-ray verify` names it"):
        read_gate(store)


def test_nothing_scored(tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    fill(store, [[failed_row("x.png")]])
    finish(store, [failed_row("x.png")])
    with pytest.raises(DataError, match="no row has a score yet"):
        read_gate(store, 4.2)


def test_the_verb(store: PairStore, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "gate.html"
    assert main(["gate", str(tmp_path), "--threshold", "4.5", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    [asked] = [line for line in out.splitlines() if "<- asked" in line]
    assert asked.split() == [">=", "4.5", "3", "50.0%", "<-", "asked"]
    for rate in PAPER_PASS_RATES:
        assert f"{rate:g}%" in out
        assert f"{rate} %" in page.read_text()
    assert page.read_text().count("<svg") == 2
    assert "3 of 6" in page.read_text()
    assert main(["gate", str(tmp_path / "none"), "--threshold", "4.5"]) == ExitCode.DATA
    assert capsys.readouterr().err.count("\n") == 1


def test_the_verb_for_programs(store: PairStore, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["gate", str(tmp_path), "--threshold", "4.5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["metric"], told["threshold"], told["scored"], told["accepted"]) == ("nima", 4.5, 6, 3)
    assert {"threshold": 4.5, "accepted": 3} in told["curve"]
    for point in told["curve"]:
        assert point["accepted"] == sum(np.float32(s) >= np.float32(point["threshold"]) for s in SCORES)

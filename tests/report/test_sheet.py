"""The contact sheet: which pairs are shown, and how."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.cli import main
from gmd_ray.errors import DataError, ExitCode
from gmd_ray.images.files.encode import decode_png
from gmd_ray.pairstore.store import PairStore
from gmd_ray.report.sheet import make_sheet
from tests.generation.shelf import failed_row, fill, finish, ok_row, png
from tests.report.page import Page, picture


def made(folder: Path, higher: bool = True, **values: object) -> PairStore:
    """20 pairs of scores 1 to 20."""
    store = PairStore(str(folder / "pairs"))
    rows = [ok_row(f"{i:02}.png", float(i), **values) for i in range(1, 21)] + [failed_row("x.png")]
    fill(store, [rows[:9], rows[9:]])
    finish(store, rows, higher=higher)
    return store


def shown(page: str) -> dict[str, list[str]]:
    groups = re.split(r"<h2>(\w+)", page)[1:]
    return {groups[i]: re.findall(r"<p><span>(\d+)\.png", groups[i + 1]) for i in range(0, len(groups), 2)}


def test_best_borderline_and_worst(tmp_path: Path) -> None:
    page = make_sheet(made(tmp_path), threshold=10.4, count=3)
    assert shown(page) == {
        "Best": ["20", "19", "18"], "Borderline": ["11", "10", "09"], "Worst": ["03", "02", "01"],
    }  # fmt: skip
    notes = dict(re.findall(r'<p><span>(\d+)\.png</span><b class="">([^<]*)</b>', page))
    assert (notes["11"], notes["10"]) == ("score 11, accepted", "score 10, rejected")


def test_lower_may_be_better(tmp_path: Path) -> None:
    page = make_sheet(made(tmp_path, higher=False), threshold=10.4, count=2)
    assert shown(page) == {"Best": ["01", "02"], "Borderline": ["10", "11"], "Worst": ["19", "20"]}


def test_a_small_store_shows_each_pair_once(tmp_path: Path) -> None:
    page = make_sheet(made(tmp_path), threshold=10.4, count=50)
    assert sorted(key for keys in shown(page).values() for key in keys) == [f"{i:02}" for i in range(1, 21)]


def test_images_stand_side_by_side_without_loss(tmp_path: Path) -> None:
    page = make_sheet(made(tmp_path), threshold=5.0, count=1)
    row = page[page.index("<p><span>20.png") :]
    names = ["restored (before)", "pseudo-target", "untouched photo"]
    assert re.findall(r"<figcaption><span>([^<]*)</span>", row)[:3] == names
    sources = [picture["src"] for picture in Page(page).named("img")][:3]
    stored = ok_row("20.png", 20.0)
    for source, name in zip(sources, ("restored", "pseudo_target", "lq"), strict=True):
        assert (picture(source) == np.rint(decode_png(stored[name]) * 255)).all()
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page), "self-contained"
    assert str(tmp_path) not in page


def test_large_images_are_cut_and_a_missing_one_left_out(tmp_path: Path) -> None:
    big = {"lq": png(200, 300), "pseudo_target": png(400, 600), "restored": None, "width": 600, "height": 400}
    page = make_sheet(made(tmp_path, **big), threshold=5.0, count=1)
    shapes = [picture(of["src"]).shape for of in Page(page).named("img")]
    assert shapes[:2] == [(320, 320, 3), (160, 160, 3)]


def test_the_bound_is_told(tmp_path: Path) -> None:
    store = PairStore(str(tmp_path / "pairs"))
    rows = [ok_row("1.png", 9.0, fidelity=20.0), ok_row("2.png", 9.0, fidelity=30.0)]
    fill(store, [rows])
    finish(store, rows, fidelity="psnr")
    page = make_sheet(store, threshold=5.0, limit=25.0)
    assert "score 9, fidelity 20, rejected" in page
    assert "score 9, fidelity 30, accepted" in page
    assert "psnr &gt;= 25" in page


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path)
    assert main(["sheet", str(tmp_path), "--threshold", "10", "--count", "2"]) == 0
    assert "sheet.html" in capsys.readouterr().out
    assert len(shown((tmp_path / "sheet.html").read_text())["Best"]) == 2
    assert main(["sheet", str(tmp_path), "--to", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").is_file()
    with pytest.raises(SystemExit, match="2"):
        main(["sheet", str(tmp_path), "--count", "0"])
    assert main(["sheet", str(tmp_path / "pairs" / "rows")]) == ExitCode.DATA


def test_a_store_that_is_not_whole(tmp_path: Path) -> None:
    store = made(tmp_path)
    fill(store, [[ok_row("20.png", 20.0)]])  # twice, after a crash
    assert shown(make_sheet(store, threshold=10.4, count=2))["Best"] == ["20", "19"]
    Path(store.rows_path, "part-torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-torn.parquet.* `gmd-ray verify` names it"):
        make_sheet(store, threshold=10.4)

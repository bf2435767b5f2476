"""The before/after strip: which images it takes, and what stands where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from gmd_ray.errors import DataError
from gmd_ray.evaluation import Evaluation
from gmd_ray.evaluation.results import PICTURES, ROWS
from gmd_ray.images.files.encode import encode_png
from gmd_ray.report.strip import GAP, TEXT, main, make_strip, typical

LEVELS = {"lq": 10, "baseline": 20, "adapted": 30, "hq": 40}


def evaluation(gains: list[float], names: tuple[str, ...] = tuple(LEVELS), side: int = 8) -> Evaluation:
    """Image i gains `gains[i]` dB; its picture `name` has the one level LEVELS[name] + i."""
    rows, pictures = [], []
    for i, gain in enumerate(gains):
        known = {"dataset": "target", "id": f"{i}.png"}
        psnr = {"baseline": 24.0, "adapted": 24.0 + gain}
        rows += [
            known | {"student": name, "metric": "psnr", "value": value, "higher_is_better": True}
            for name, value in psnr.items()
        ]
        for name in names:
            level = np.full((side // (2 if name == "lq" else 1), side, 3), LEVELS[name] + i, np.uint8)
            pictures.append(known | {"name": name, "png": encode_png(level)})
    tables = pa.Table.from_pylist(rows, schema=ROWS), pa.Table.from_pylist(pictures, schema=PICTURES)
    return Evaluation(*tables, ("baseline", "adapted"), ("psnr",), "")


def test_the_images_have_the_median_gain_and_not_the_best() -> None:
    assert typical(evaluation([0.9, 0.3, 0.1, 0.32, -0.5, 0.8]), "target", 2) == ["1.png", "3.png"]


def test_images_without_ground_truth_are_taken_evenly() -> None:
    found = evaluation([0.0] * 5)
    unmeasured = Evaluation(ROWS.empty_table(), found.pictures, found.students, (), "")
    assert typical(unmeasured, "target", 3) == ["0.png", "2.png", "4.png"]


def test_every_panel_stands_under_its_heading() -> None:
    strip = np.asarray(make_strip(evaluation([0.3, 0.3]), count=2, width=64))
    assert strip.shape == (TEXT + 2 * (64 + TEXT), 4 * (64 + GAP) - GAP, 3)
    for column, level in enumerate(LEVELS.values()):
        for row in range(2):
            top, left = TEXT + row * (64 + TEXT), column * (64 + GAP)
            assert (strip[top : top + 32, left : left + 64] == level + row).all()
    assert (strip[TEXT + 32 : TEXT + 64, :64] == 255).all(), "an input half as high leaves the rest white"
    assert (strip[:TEXT] < 128).any(), "headings"
    assert (strip[TEXT + 64 : 2 * TEXT + 64, 64 + GAP : 2 * 64 + GAP] < 128).any(), "the PSNR of the second panel"


def test_a_column_that_no_image_has_is_left_out() -> None:
    strip = make_strip(evaluation([0.3], names=("lq", "baseline", "adapted")), count=1, width=64)
    assert strip.width == 3 * (64 + GAP) - GAP


def test_the_command_writes_a_saved_evaluation_without_loss(tmp_path: Path) -> None:
    found = evaluation([0.1, 0.2, 0.3])
    found.save(str(tmp_path / "run"))
    main([str(tmp_path / "run"), "-o", str(tmp_path / "strip.webp"), "--count", "1"])
    expected = make_strip(found, count=1)
    assert (np.asarray(Image.open(tmp_path / "strip.webp").convert("RGB")) == np.asarray(expected)).all()


def test_a_quality_makes_a_smaller_file(tmp_path: Path) -> None:
    evaluation([0.1, 0.2, 0.3]).save(str(tmp_path / "run"))
    for name, more in (("lossless", []), ("lossy", ["--quality", "50"])):
        main([str(tmp_path / "run"), "-o", str(tmp_path / f"{name}.webp"), "--count", "1", *more])
    exact, close = (np.asarray(Image.open(tmp_path / f"{name}.webp"), float) for name in ("lossless", "lossy"))
    assert 0 < np.abs(exact - close).mean() < 10


def test_an_evaluation_without_pictures_says_which_setting_keeps_them() -> None:
    found = Evaluation(ROWS.empty_table(), PICTURES.empty_table(), ("baseline",), ("psnr",), "")
    with pytest.raises(DataError, match=r"evaluation\.report_images"):
        make_strip(found)

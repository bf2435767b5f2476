"""A run lists each of its folders once, from the preflight to the report."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gmd_ray.errors import DataError
from gmd_ray.evaluation.items import held_out_items
from gmd_ray.images import listing
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.sets.pairs import list_pairs, list_truths
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.ready import ready
from gmd_ray.training.spec import make_spec
from tests.training.toys import make_config, picture


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of walks through each folder, by its path."""
    counts: Counter[str] = Counter()
    walk = listing.walk

    def counted(filesystem: Any, root: str, *args: Any) -> Any:
        counts[root] += 1
        return walk(filesystem, root, *args)

    monkeypatch.setattr(listing, "walk", counted)
    return counts


def _images(folder: Path, names: list[str], side: int = 24) -> str:
    folder.mkdir()
    for key, name in enumerate(names):
        (folder / name).write_bytes(encode_png(picture(sum(folder.name.encode()) + key, side, side)))
    return str(folder)


def test_an_adaptation_lists_each_folder_once(tmp_path: Path, walked: Counter[str]) -> None:
    cfg = make_config(tmp_path, validate_every=6, validation_images=2, cpus_per_worker=1.0)
    cfg.controls = ["source_only", "median", "supervised"]
    cfg.target.path = _images(tmp_path / "photos", [f"{i:03d}.png" for i in range(9)])
    cfg.training.supervised_hq = _images(tmp_path / "truths", [f"{i:03d}.png" for i in range(9)])
    e = cfg.evaluation
    e.target_lq = _images(tmp_path / "test-lq", ["a.png", "b.png"])
    e.target_hq = _images(tmp_path / "test-hq", ["a.png", "b.png"])
    e.source_lq = _images(tmp_path / "held-lq", ["a.png", "b.png", "c.png"])
    e.source_hq = _images(tmp_path / "held-hq", ["a.png", "b.png", "c.png"])
    e.metrics = ["psnr"]
    inputs = ready(cfg, "finetune", save=False)
    for name in ("adapted", *cfg.controls):
        spec = make_spec(cfg, name, None, inputs=inputs)
        assert len(spec.validation) == 2
    assert [Path(uri).name for uri in make_spec(cfg, "supervised", None, inputs=inputs).target.truths] == [  # type: ignore[union-attr]
        f"{i:03d}.png" for i in range(1, 8)
    ]
    assert len(held_out_items(cfg, inputs)) == 5
    assert len(inputs.images(cfg.target.path)) == 9
    folders = [cfg.source.hq, cfg.source.lq, cfg.target.path, cfg.training.supervised_hq]
    folders += [e.target_lq, e.target_hq, e.source_lq, e.source_hq]
    assert walked == dict.fromkeys(map(os.path.abspath, map(str, folders)), 1)


def test_a_limit_and_a_subset_come_from_the_same_listing(tmp_path: Path, walked: Counter[str]) -> None:
    hq = _images(tmp_path / "hq", ["a.png", "b.png", "c.png"])
    lq = _images(tmp_path / "lq", ["a.png", "b.png", "c.png"])
    inputs = RunInputs()
    assert inputs.pairs(hq, lq) == list_pairs(hq, lq)
    assert inputs.pairs(hq, lq, limit=2) == list_pairs(hq, lq, limit=2)
    assert inputs.truths(hq, ["a.png", "c.png"], "key") == list_truths(hq, ["a.png", "c.png"], "key")
    before = Counter(walked)
    assert inputs.truths(hq, ["c.png"], "key") == [f"{hq}/c.png"]
    assert walked == before
    with pytest.raises(DataError, match=r"key=.*1 of 1 photos have no ground truth there \(d\.png\)"):
        inputs.truths(hq, ["d.png"], "key")


def test_a_listing_that_failed_is_tried_again(tmp_path: Path) -> None:
    inputs = RunInputs()
    with pytest.raises(DataError):
        inputs.images(str(tmp_path / "later"))
    _images(tmp_path / "later", ["a.png"])
    assert [file.id for file in inputs.images(str(tmp_path / "later"))] == ["a.png"]

"""The crop maker of the PolyU experiment, on tiny originals in the published layouts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.layouts import SETS
from gmd_ray.images.listing import list_images
from gmd_ray.images.sets import polyu
from gmd_ray.images.sets.pairs import list_pairs

ORIGINALS = "PolyU-Real-World-Noisy-Images-Dataset/OriginalImages"
SHARED = Path(__file__).parents[4] / "shared" / "data" / "photo_world" / "split.json"


def draw(path: Path, rng: np.random.Generator, height: int, width: int) -> None:
    """A blurred random picture; its contrast grows from left to right."""
    image = cv2.GaussianBlur(rng.normal(0, 90, (height, width, 3)), (0, 0), 3) * np.linspace(0, 4, width)[None, :, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.clip(image + 128, 0, 255).astype(np.uint8))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two training scenes, one test scene and one that is in neither; three crops of four source photos."""
    monkeypatch.setattr(polyu, "TRAIN", ("Canon5D2_bag", "Nikon800_wall"))
    monkeypatch.setattr(polyu, "TEST", ("SonyA7II_stair",))
    monkeypatch.setattr(polyu, "SOURCE_PHOTOS", 3)
    counts = {
        "polyu/originals/real": 4, "polyu/originals/mean": 4, "bsds500/all/hq": 4, "kodak24/test/hq": 2,
        "frozen/polyu/target_lq": 20, "frozen/polyu/target_hq": 20, "frozen/polyu/target_test_lq": 4,
        "frozen/polyu/target_test_hq": 4, "frozen/polyu/source_hq": 3, "frozen/polyu/source_test_hq": 2,
    }  # fmt: skip
    for name, count in counts.items():
        monkeypatch.setitem(SETS, name, replace(SETS[name], count=count))
    rng = np.random.default_rng(0)
    for scene in (*polyu.TRAIN, *polyu.TEST, "Unused"):
        for shot in ("Real", "mean"):
            draw(tmp_path / ORIGINALS / f"{scene}_{shot}.JPG", rng, 196, 204)
    for i in range(4):
        draw(tmp_path / "BSDS500/data/images" / ("train", "val")[i % 2] / f"{i}.jpg", rng, 100, 120)
    for i in range(2):
        draw(tmp_path / "Kodak24" / f"kodim{i}.png", rng, 192, 220)
    return tmp_path


def test_crops_are_those_of_their_originals_and_pair_by_name(root: Path) -> None:
    out = polyu.cut_crops(root)
    assert out == root / "frozen/polyu"
    for part, count, side in (("target", 20, 64), ("target_test", 4, 192)):
        pairs = list_pairs(f"frozen/polyu/{part}_hq@{root}", f"frozen/polyu/{part}_lq@{root}")
        assert len(pairs) == count
        noisy, clean = cv2.imread(str(pairs[0].lq)), cv2.imread(pairs[0].hq)
        assert noisy.shape == clean.shape == (side, side, 3)
        scene = pairs[0].id.rpartition("_")[0]
        places = []
        for crop, shot in ((noisy, "Real"), (clean, "mean")):
            original = cv2.imread(str(root / ORIGINALS / f"{scene}_{shot}.JPG"))
            found = cv2.matchTemplate(original, crop, cv2.TM_SQDIFF)
            top, left = np.unravel_index(found.argmin(), found.shape)
            assert np.array_equal(original[top : top + side, left : left + side], crop)
            places.append((top, left))
        assert places[0] == places[1]
    assert len(list_images(f"frozen/polyu/source_hq@{root}")) == 3
    assert {cv2.imread(file.uri).shape for file in list_images(f"frozen/polyu/source_hq@{root}")} == {(96, 96, 3)}
    middle = cv2.imread(str(root / "Kodak24/kodim1.png"))[:192, 14:206]
    assert np.array_equal(cv2.imread(str(out / "source_test_hq/kodim1.png")), middle)


def test_no_scene_is_in_two_parts_and_the_split_is_written_last(root: Path) -> None:
    out = polyu.cut_crops(root)
    split = json.loads((out / "split.json").read_text())
    assert not set(split["train"]) & set(split["test"])
    assert {path.name.rpartition("_")[0] for path in (out / "target_lq").iterdir()} == set(split["train"])
    assert {path.name.rpartition("_")[0] for path in (out / "target_test_hq").iterdir()} == set(split["test"])
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert max(times, key=times.__getitem__).name == "split.json"
    polyu.cut_crops(root)
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_a_stopped_call_ends_with_the_same_bytes(root: Path) -> None:
    def digests() -> dict[str, str]:
        files = sorted(path for path in out.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    out = polyu.cut_crops(root)
    first = digests()
    for name in ("split.json", "source_hq/0.png", "target_lq/Canon5D2_bag_3.png"):
        (out / name).unlink(missing_ok=True)
    polyu.cut_crops(root)
    assert digests() == first


def test_places_avoid_flat_parts_and_go_from_low_contrast_to_high() -> None:
    rng = np.random.default_rng(1)
    flat = np.full((200, 100, 3), 128, np.uint8)
    busy = cv2.GaussianBlur(rng.integers(0, 256, (200, 200, 3)).astype(np.uint8), (0, 0), 2)
    photo = np.concatenate([flat, busy], axis=1)
    places = polyu.spread_places(photo, polyu.CropPlan(32, 8, 60), np.random.default_rng(2))
    assert len(set(places)) == 8
    luma = cv2.GaussianBlur(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), (0, 0), 3).astype(float)
    contrast = [luma[top : top + 32, left : left + 32].std() for top, left in places]
    assert contrast == sorted(contrast)
    assert all(left > 68 for _, left in places)  # none lies within the flat part


def test_what_is_missing_or_does_not_fit_is_named(root: Path) -> None:
    scene = root / ORIGINALS / "Canon5D2_bag_Real.JPG"
    draw(scene, np.random.default_rng(3), 196, 210)
    with pytest.raises(DataError, match=r"Canon5D2_bag: 210x196 and 204x196.*Canon5D2_bag_Real.JPG"):
        polyu.cut_crops(root)
    draw(scene, np.random.default_rng(3), 60, 204)
    with pytest.raises(DataError, match=r"Canon5D2_bag_Real.JPG: 204x60, and each side needs 65 pixels at least"):
        polyu.cut_crops(root)
    for shot in ("Real", "mean"):
        (root / ORIGINALS / f"Canon5D2_bag_{shot}.JPG").rename(root / ORIGINALS / f"Other_{shot}.JPG")
    with pytest.raises(DataError, match=r"lacks 1 of the scenes \(Canon5D2_bag\)"):
        polyu.cut_crops(root)
    (root / ORIGINALS / "Other_Real.JPG").unlink()
    with pytest.raises(DataError, match="PolyU, 40 scenes has 4 images; found 3"):
        polyu.cut_crops(root)


def test_a_folder_of_other_files_is_left_alone(root: Path) -> None:
    (root / "frozen/polyu").mkdir(parents=True)
    (root / "frozen/polyu/mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="frozen/polyu: not a folder of these crops"):
        polyu.cut_crops(root)
    assert (root / "frozen/polyu/mine.txt").read_text() == "keep"


def test_the_published_counts_are_those_of_the_scenes() -> None:
    for side in ("lq", "hq"):
        assert SETS[f"frozen/polyu/target_{side}"].count == polyu.TARGET.count * len(polyu.TRAIN)
        assert SETS[f"frozen/polyu/target_test_{side}"].count == polyu.TARGET_TEST.count * len(polyu.TEST)
    assert SETS["frozen/polyu/source_hq"].count == polyu.SOURCE_PHOTOS
    assert not set(polyu.TRAIN) & set(polyu.TEST)


@pytest.mark.skipif(not SHARED.is_file(), reason="needs ../shared/data/photo_world")
def test_the_scenes_are_those_of_the_published_figures() -> None:
    assert json.loads(SHARED.read_text()) == {"train": list(polyu.TRAIN), "test": list(polyu.TEST)}

"""Crops of real camera noise for the preset `denoise_polyu`: `python -m gmd_ray.images.sets.polyu ROOT`.

ROOT holds three published sets as `gmd-ray ls sets` names them: `polyu/originals`, `bsds500/all` and `kodak24/test`.
The crops are written below ROOT/frozen/polyu:

    target_lq, target_hq              10 crops of 64 pixels from each of 23 scenes, to adapt to, and their truth
    target_test_lq, target_test_hq    4 crops of 192 pixels from each of 12 other scenes
    source_hq                         a crop of 96 pixels from each of 300 photos of BSDS500
    source_test_hq                    the middle 192 pixels of the 24 Kodak photos
    split.json                        the scenes of each part; it is written last

The truth of a scene is the mean of many shots of it. Five of the 40 scenes are in neither part. Places of crops are
chosen in the noisy photo, without its truth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.listing import list_images, read_file
from gmd_ray.images.sets.frozen_files import put
from gmd_ray.images.sets.pairs import PairFile, list_pairs

FOLDER = "frozen/polyu"
SEED = 7

TRAIN = (
    "Canon5D2_bag", "Canon5D2_chair", "Canon5D2_circu", "Canon5D2_fruit", "Canon5D2_mouse", "Canon5D2_recie",
    "Canon5D2_robot", "Canon80D_GO", "Canon80D_ball", "Canon80D_corne", "Canon80D_print", "Nikon800_class",
    "Nikon800_desch", "Nikon800_door", "Nikon800_flowe", "Nikon800_photo", "Nikon800_plant", "Nikon800_stair",
    "Nikon800_wall", "SonyA7II_book", "SonyA7II_class", "SonyA7II_door", "SonyA7II_plant",
)  # fmt: skip
"""Scenes whose noisy photos the student is adapted to."""

TEST = (
    "Canon5D2_bicyc", "Canon5D2_desk", "Canon5D2_plug", "Canon5D2_toy", "Canon80D_compr", "Nikon800_bulle",
    "Nikon800_desk", "Nikon800_map", "Nikon800_plaso", "Nikon_800_carbi", "SonyA7II_compu", "SonyA7II_stair",
)  # fmt: skip
"""Scenes on which the students are measured."""


@dataclass(frozen=True)
class CropPlan:
    """The number of crops of each photo, and their size."""

    side: int
    count: int
    tries: int
    """Number of places that are drawn, of which `count` are kept."""


TARGET, TARGET_TEST = CropPlan(64, 10, 60), CropPlan(192, 4, 24)
SOURCE_SIDE, SOURCE_PHOTOS = 96, 300


def cut_crops(root: str | Path) -> Path:
    """Write the crops below `root`/frozen/polyu, unless an earlier call has finished; the same bytes each time.

    Returns:
        the folder of the crops.

    Raises:
        ConfigError: the output exists and was made by something else.
        DataError: a published set or a scene is missing, a photo cannot be read, or it is too small.
    """
    out = Path(root, FOLDER)
    if (out / "split.json").is_file():
        return out
    if out.exists() and any(out.iterdir()) and not (out / "target_lq").is_dir():
        raise ConfigError(f"{out}: not a folder of these crops; remove it")
    scenes = {
        Path(pair.id).stem: pair for pair in list_pairs(f"polyu/originals/mean@{root}", f"polyu/originals/real@{root}")
    }
    missing = [scene for scene in (*TRAIN, *TEST) if scene not in scenes]
    if missing:
        raise DataError(f"polyu/originals@{root}: lacks {len(missing)} of the scenes ({', '.join(missing[:3])})")
    photos = list_images(f"bsds500/all/hq@{root}")
    kodak = list_images(f"kodak24/test/hq@{root}")
    rng = np.random.default_rng(SEED)
    for names, plan, folder in ((TRAIN, TARGET, "target"), (TEST, TARGET_TEST, "target_test")):
        for scene in names:
            _cut_scene(out, folder, scene, scenes[scene], plan, rng)
    for index in rng.permutation(len(photos))[:SOURCE_PHOTOS]:
        image = _read(photos[index].uri, SOURCE_SIDE + 1)
        top, left = (int(rng.integers(0, length - SOURCE_SIDE)) for length in image.shape[:2])
        _write(out / "source_hq", Path(photos[index].id).stem, _crop(image, top, left, SOURCE_SIDE))
    side = TARGET_TEST.side
    for file in kodak:
        image = _read(file.uri, side)
        top, left = ((length - side) // 2 for length in image.shape[:2])
        _write(out / "source_test_hq", Path(file.id).stem, _crop(image, top, left, side))
    put(out / "split.json", json.dumps({"train": TRAIN, "test": TEST}).encode())
    return out


def spread_places(noisy: np.ndarray, plan: CropPlan, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Choose places of crops by the contrast of the noisy photo, so that no ground truth is asked.

    Places are drawn at random and ranked by the standard deviation of the blurred luma. The flattest third, which is
    mostly walls, is dropped, and the rest is sampled evenly by rank.

    Args:
        noisy: uint8 RGB (H, W, 3), larger than `plan.side` on both axes.
        plan: how many places, and of which size.
        rng: draws the places.

    Returns:
        (top, left) of `plan.count` crops, from low contrast to high.
    """
    luma = cv2.GaussianBlur(cv2.cvtColor(noisy, cv2.COLOR_RGB2GRAY), (0, 0), 3).astype(float)
    ranked = []
    for _ in range(plan.tries):
        top, left = (int(rng.integers(0, length - plan.side)) for length in luma.shape)
        ranked.append((_crop(luma, top, left, plan.side).std(), top, left))
    ranked.sort()
    kept = ranked[len(ranked) // 3 :]
    return [kept[rank][1:] for rank in np.linspace(0, len(kept) - 1, plan.count).astype(int)]


def _cut_scene(out: Path, folder: str, scene: str, pair: PairFile, plan: CropPlan, rng: np.random.Generator) -> None:
    assert pair.lq is not None
    noisy, clean = _read(pair.lq, plan.side + 1), _read(pair.hq, plan.side + 1)
    if noisy.shape != clean.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (noisy, clean))
        raise DataError(f"{scene}: {sizes}, and both shots of a scene are of one size ({pair.lq}, {pair.hq})")
    for number, (top, left) in enumerate(spread_places(noisy, plan, rng)):
        for side, image in (("lq", noisy), ("hq", clean)):
            _write(out / f"{folder}_{side}", f"{scene}_{number}", _crop(image, top, left, plan.side))


def _read(uri: str, least: int) -> np.ndarray:
    """Read a photo as uint8 RGB whose sides have at least `least` pixels."""
    try:
        image = decode_8bit(read_file(uri))
    except DataError as error:
        raise DataError(f"{uri}: {error}") from error
    if min(image.shape[:2]) < least:
        raise DataError(f"{uri}: {image.shape[1]}x{image.shape[0]}, and each side needs {least} pixels at least")
    return image


def _crop(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    return image[top : top + side, left : left + side]


def _write(folder: Path, name: str, image: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    put(folder / f"{name}.png", encode_png(image))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT", help="folder of the published sets; the crops go to ROOT/frozen/polyu")
    print(cut_crops(parser.parse_args(argv).root))


if __name__ == "__main__":
    main()

"""Making of the photo demo's data sets as folders of PNG files, from the photographs that ship with the package.

Target and test pictures are shot by a simulated camera; the source is clean, and the run degrades it. Every image is a
function of the seed, its role and its photograph.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from gmd_ray.demo.marker import is_made, mark
from gmd_ray.demo.photos.camera import Camera, shoot, smooth
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.files.encode import encode_png

log = logging.getLogger("gmd_ray")

PHOTOGRAPHS = Path(__file__).parent / "photographs"

DARK = Camera(electrons=(25.0, 60.0), read_noise=(3.0, 6.0), jpeg_quality=(12, 30))
"""Camera of the few target pictures that are beyond repair, for the gate to reject; they are shaken, too."""


@dataclass
class PhotoWorldSize:
    """Numbers per photograph and sides in pixels."""

    seed: int = 100
    shots: int = 6
    """Pictures of each target photograph, each with its own ISO and settings; crops take turns among them."""
    target: int = 36
    severe: int = 4
    """Further target crops, shaken and taken with the camera `DARK`."""
    target_side: int = 64
    target_test: int = 6
    """Held-out crops, each from a shot of its own."""
    target_test_side: int = 192
    source: int = 30
    source_side: int = 96
    source_test: int = 5
    source_test_side: int = 128


def prepare(root: str | Path, size: PhotoWorldSize | None = None, photographs: Path = PHOTOGRAPHS) -> None:
    """Write the demo's folders below `root`, unless an earlier call has finished.

    Folders: `target_lq`, the photos to adapt to; `target_hq`, their ground truth, for the report alone; the held-out
    `target_test_lq` and `target_test_hq`; and the clean `source_hq` and `source_test_hq`.

    Raises:
        DataError: `root` holds a world of another size or seed.
    """
    root, size = Path(root), size or PhotoWorldSize()
    if is_made(root, asdict(size)):
        return
    log.info("making the photo demo's images under %s", root)
    for name, scene in _scenes(photographs / "target"):
        _target(root, name, scene, size)
    for name, scene in _scenes(photographs / "target_test"):
        _target_test(root, name, scene, size)
    for role, count, side in (
        ("source", size.source, size.source_side),
        ("source_test", size.source_test, size.source_test_side),
    ):
        for name, scene in _scenes(photographs / role):
            rng = sample_rng(size.seed, role, name)
            for k, crop in enumerate(_crops(scene, side, count, rng, tries=max(12, 3 * count))):
                _write(root / f"{role}_hq" / f"{name}_{k:02d}.png", scene[crop])
    mark(root, asdict(size))


Crop = tuple[slice, slice]


def _target(root: Path, name: str, scene: np.ndarray, size: PhotoWorldSize) -> None:
    rng = sample_rng(size.seed, "target", name)
    shots = [shoot(scene, rng) for _ in range(size.shots)]
    for k, crop in enumerate(_crops(shots[0].picture, size.target_side, size.target, rng)):
        shot = shots[k % size.shots]
        _write(root / "target_lq" / f"{name}_{k:02d}.png", shot.picture[crop])
        _write(root / "target_hq" / f"{name}_{k:02d}.png", shot.truth[crop])
    for k, crop in enumerate(_crops(shots[0].picture, size.target_side, size.severe, rng)):
        dark = shoot(shake(scene, rng), rng, DARK)
        _write(root / "target_lq" / f"{name}_severe{k}.png", dark.picture[crop])
        _write(root / "target_hq" / f"{name}_severe{k}.png", shots[0].truth[crop])


def _target_test(root: Path, name: str, scene: np.ndarray, size: PhotoWorldSize) -> None:
    rng = sample_rng(size.seed, "target test", name)
    shots = [shoot(scene, rng) for _ in range(size.target_test)]
    crops = _crops(shots[0].picture, size.target_test_side, size.target_test, rng)
    for k, (shot, crop) in enumerate(zip(shots, crops, strict=True)):
        _write(root / "target_test_lq" / f"{name}_{k:02d}.png", shot.picture[crop])
        _write(root / "target_test_hq" / f"{name}_{k:02d}.png", shot.truth[crop])


def shake(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blur a photograph by a Gaussian of 2 pixels and a straight motion of 13 to 22 pixels.

    Args:
        scene: uint8 RGB, (H, W, 3).

    Returns:
        float32 RGB in [0, 255], (H, W, 3).
    """
    length = int(rng.integers(13, 23))
    angle = rng.uniform(0, np.pi)
    along = np.linspace(-1, 1, 4 * length) * (length - 1) / 2
    middle = (length - 1) / 2
    kernel = np.zeros((length, length), np.float32)
    rows, columns = (np.rint(middle + along * f(angle)).astype(int) for f in (np.sin, np.cos))
    kernel[rows, columns] = 1
    blurred = smooth(scene.astype(np.float32), 2.0)
    return np.clip(cv2.filter2D(blurred, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101), 0, 255)


def _crops(
    picture: np.ndarray, side: int, count: int, rng: np.random.Generator, tries: int | None = None
) -> list[Crop]:
    """Choose square crops that are spread evenly over the contrast of random ones, the flattest third left out.

    The choice sees the camera's picture alone, as a user who cuts crops of real photos would.
    """
    gray = smooth(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), 3.0)
    candidates = [_anywhere(picture, side, rng) for _ in range(tries or 6 * count)]
    ranked = sorted(candidates, key=lambda crop: float(gray[crop].std()))
    ranked = ranked[len(ranked) // 3 :]
    return [ranked[k] for k in np.linspace(0, len(ranked) - 1, count).astype(int)]


def _anywhere(picture: np.ndarray, side: int, rng: np.random.Generator) -> Crop:
    top, left = (int(rng.integers(0, length - side, endpoint=True)) for length in picture.shape[:2])
    return slice(top, top + side), slice(left, left + side)


def _scenes(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Read the photographs of one role by name: uint8 RGB, (H, W, 3), cut to even sides."""
    for file in sorted(folder.glob("*.jpg")):
        rgb = decode_8bit(file.read_bytes())
        yield file.stem, np.ascontiguousarray(rgb[: rgb.shape[0] // 2 * 2, : rgb.shape[1] // 2 * 2])


def _write(file: Path, rgb: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encode_png(rgb))

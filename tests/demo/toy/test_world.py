"""The toy world: a function of (seed, split, index), with its three ways of going wrong in the right order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.demo.toy import world
from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.errors import DataError
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.images.files.decode import decode_image

SMALL = WorldSize(seed=1, target=6, severe=2, source=4, target_test=3, source_test=2)


def test_an_image_is_a_function_of_its_key() -> None:
    image = world.draw(0, "a", 7)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, world.draw(0, "a", 7))
    for other in (world.draw(1, "a", 7), world.draw(0, "b", 7), world.draw(0, "a", 8)):
        assert np.abs(image - other).mean() > 0.01


def test_drawing_is_the_same_in_another_process() -> None:
    code = "import sys; from gmd_ray.demo.toy import world; sys.stdout.buffer.write(world.draw(3, 'p', 1).tobytes())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert out == world.draw(3, "p", 1).tobytes()


def test_degradations_are_ordered_by_harm() -> None:
    def psnr(degradation) -> float:
        errors = []
        for i in range(30):
            clean = world.draw(0, "order", i)
            errors.append(((degradation(clean, sample_rng("order", i)) - clean) ** 2).mean())
        return -10 * np.log10(np.mean(errors))

    from gmd_ray.demo.toy.prepare import SEVERE

    assert psnr(world.SOURCE) > psnr(world.TARGET) + 3 > psnr(SEVERE) + 6


def test_prepare_writes_pairs_once(tmp_path: Path) -> None:
    prepare(tmp_path, SMALL)
    counts = {folder.name: len(list(folder.iterdir())) for folder in tmp_path.iterdir() if folder.is_dir()}
    assert counts == {
        "target_lq": 6, "target_hq": 6, "source_lq": 4, "source_hq": 4,
        "target_test_lq": 3, "target_test_hq": 3, "source_test_lq": 2, "source_test_hq": 2,
    }  # fmt: skip
    clean = decode_image((tmp_path / "source_hq" / "00002.png").read_bytes())
    np.testing.assert_allclose(clean, world.draw(1, "source", 2), atol=1e-6)
    stamp = (tmp_path / "target_lq" / "00000.png").stat().st_mtime_ns
    prepare(tmp_path, SMALL)
    assert (tmp_path / "target_lq" / "00000.png").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match="other settings"):
        prepare(tmp_path, WorldSize(seed=2))

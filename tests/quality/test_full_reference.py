"""PSNR and SSIM against scikit-image, pyiqa and published values."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gmd_ray.errors import ConfigError, DataError
from gmd_ray.quality import Metric, load_metric
from gmd_ray.quality.full_reference import MAX_PSNR, structural_similarity

NAMES = ("I03", "I04", "I06", "I08", "I19")


@pytest.fixture(scope="module")
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth picture with an edge, and a noisy version; (3, 45, 60), as read from 8-bit files."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[0:45, 0:60]
    clean = np.stack([np.sin(rows / 7), np.cos(columns / 9), np.where(columns > rows, 0.6, -0.5)]) * 0.4 + 0.5
    noisy = np.clip(clean + rng.normal(0, 0.08, clean.shape), 0, 1)
    image, reference = (torch.from_numpy(np.rint(x * 255) / 255).float() for x in (noisy, clean))
    return image, reference


def levels(image: torch.Tensor) -> np.ndarray:
    return np.rint(image.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def matlab_luma(image: torch.Tensor) -> np.ndarray:
    red, green, blue = image.double().numpy()
    return 16 + 65.481 * red + 128.553 * green + 24.966 * blue


def skimage_ssim(x: np.ndarray, y: np.ndarray, channel_axis: int | None) -> float:
    from skimage.metrics import structural_similarity as oracle

    return oracle(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=channel_axis
    )


def read(path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


def test_rgb_values_are_scikit_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    image, reference = pair
    x, y = levels(image), levels(reference)
    assert load_metric("psnr")(image, reference) == pytest.approx(peak_signal_noise_ratio(y, x), abs=1e-9)
    assert load_metric("ssim")(image, reference) == pytest.approx(
        skimage_ssim(x.astype(float), y.astype(float), 2), abs=1e-7
    )


def test_luma_values_are_scikit_images_on_matlab_luma(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    from skimage.metrics import peak_signal_noise_ratio

    image, reference = pair
    x, y = matlab_luma(image), matlab_luma(reference)
    assert load_metric("psnr_y")(image, reference) == pytest.approx(
        peak_signal_noise_ratio(y, x, data_range=255), abs=1e-4
    )
    assert load_metric("ssim_y")(image, reference) == pytest.approx(skimage_ssim(x, y, None), abs=1e-6)


def test_border_is_cut_from_both_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    image, reference = pair
    for name in ("psnr", "psnr_y", "ssim", "ssim_y"):
        inner = load_metric(name)(image[:, 4:-4, 4:-4], reference[:, 4:-4, 4:-4])
        assert load_metric(name, crop_border=4)(image, reference) == pytest.approx(inner, abs=1e-12)
        assert inner != load_metric(name)(image, reference)


def test_values_are_those_of_the_saved_file(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    """A sub-level difference, or one outside [0, 1], is not in the PNG and so not in the value."""
    image, reference = pair
    for name in ("psnr", "ssim"):
        metric = load_metric(name)
        assert metric(image + 0.4 / 255, reference) == metric(image, reference)
    white = torch.ones(3, 16, 16)
    assert load_metric("psnr")(white * 1.7, white) == MAX_PSNR


def test_identical_images(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, reference = pair
    assert load_metric("psnr")(reference, reference) == MAX_PSNR
    assert load_metric("ssim")(reference, reference) == pytest.approx(1, abs=1e-12)


def test_one_level_everywhere_is_48_db() -> None:
    gray = torch.full((3, 8, 8), 100 / 255)
    assert load_metric("psnr")(gray, gray + 1 / 255) == pytest.approx(20 * math.log10(255))


def test_anticorrelated_structure_is_negative() -> None:
    """The formula of the paper, not the variant that cuts off below zero."""
    checker = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 0.5 + 0.25
    image = checker.expand(3, -1, -1)
    assert load_metric("ssim")(image, 1 - image) < -0.5


@pytest.mark.parametrize(
    ("image", "reference", "said"),
    [
        (torch.rand(3, 8, 9), None, "ground truth"),
        (torch.rand(3, 8, 9), torch.rand(3, 9, 8), "differ in size"),
        (torch.rand(1, 8, 9), torch.rand(1, 8, 9), "(3, H, W)"),
        (torch.full((3, 12, 12), float("nan")), torch.rand(3, 12, 12), "NaN"),
        (torch.rand(3, 10, 40), torch.rand(3, 10, 40), "11x11"),
    ],
)
def test_images_that_cannot_be_measured(image: torch.Tensor, reference: torch.Tensor | None, said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_metric("ssim")(image, reference)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_border_that_leaves_nothing() -> None:
    with pytest.raises(DataError, match="crop_border=4 leaves nothing of a 9x8 image"):
        load_metric("psnr", crop_border=4)(torch.rand(3, 8, 9), torch.rand(3, 8, 9))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"crop_border": -1}, "evaluation.crop_border=-1"),
        ({"weights": "x.pth"}, "has no weights"),
        ({"device": "gpu"}, "evaluation.device=gpu"),
        ({"device": "cuda:99"}, "CUDA devices"),
    ],
)
def test_settings_that_cannot_be_met(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_metric("psnr", **arguments)  # type: ignore[arg-type]


def test_is_a_metric() -> None:
    metric = load_metric("ssim_y")
    assert isinstance(metric, Metric)
    assert (metric.name, metric.higher_is_better, metric.needs_reference) == ("ssim_y", True, True)


def test_published_psnr_and_ssim(shared_data: Path) -> None:
    """TID2013 pairs. The authors' SSIM is of MATLAB's rounded gray, Y of YIQ, so the formula is compared on that plane.

    The row `ssim(ours)` is pyiqa's, which cuts off negative structure (0.6997 for I03, not 0.6993).
    """
    folder = shared_data / "metric_calibration"
    with (folder / "calibration_summary.csv").open() as file:
        published = {row["Method"]: row for row in csv.DictReader(file)}
    for name in NAMES:
        image, reference = read(folder / "dist_dir" / f"{name}.bmp"), read(folder / "ref_dir" / f"{name}.bmp")
        psnr = float(published["psnr(ours)"][f"{name}.bmp"])
        assert load_metric("psnr")(image, reference) == pytest.approx(psnr, abs=1e-4)
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)
        x, y = ((side * 255 * weights).sum(0).round()[None, None] for side in (image.double(), reference.double()))
        assert structural_similarity(x, y) == pytest.approx(float(published["ssim"][f"{name}.bmp"]), abs=1e-4)


def test_agrees_with_pyiqa(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    pytest.importorskip("pyiqa")
    from pyiqa.archs.psnr_arch import PSNR

    image, reference = pair
    assert load_metric("ssim")(image, reference) == pytest.approx(load_metric("ssimc")(image, reference), abs=2e-4)
    luma = PSNR(test_y_channel=True, color_space="ycbcr")(image[None], reference[None]).item()
    assert load_metric("psnr_y")(image, reference) == pytest.approx(luma, abs=1e-3)


@pytest.mark.parametrize("name", ["psnr", "psnr_y", "ssim", "ssim_y"])
def test_a_mask_counts_its_pixels_alone(pair: tuple[torch.Tensor, torch.Tensor], name: str) -> None:
    """PSNR of a rectangle is that of the cut; pixels outside of it change nothing, and SSIM takes whole windows."""
    image, reference = pair
    mask = torch.zeros(image.shape[-2:], dtype=torch.bool)
    mask[20:60, 16:70] = True
    metric = load_metric(name)
    if name.startswith("psnr"):
        expected = metric(image[:, 20:60, 16:70], reference[:, 20:60, 16:70])
    else:  # windows centred in the rectangle reach five pixels beyond it
        expected = metric(image[:, 15:65, 11:75], reference[:, 15:65, 11:75])
    assert metric(image, reference, mask) == pytest.approx(expected, rel=1e-9)
    spoiled = image.clone()
    spoiled[:, :10] = 0
    assert metric(spoiled, reference, mask) == metric(image, reference, mask)
    assert metric(image, reference, torch.ones_like(mask)) == pytest.approx(metric(image, reference), rel=1e-12)
    cropped = load_metric(name, crop_border=4)
    inner = metric(image[:, 4:-4, 4:-4], reference[:, 4:-4, 4:-4], mask[4:-4, 4:-4])
    assert cropped(image, reference, mask) == pytest.approx(inner, rel=1e-12)
    with pytest.raises(DataError, match="no pixel in common"):
        metric(image, reference, torch.zeros_like(mask))

"""Real-ESRGAN's chain: its noise by statistics, its stages one at a time, its presets against one another."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from gmd_ray.errors import ConfigError
from gmd_ray.images.degradation import second_order
from gmd_ray.images.degradation.degradations import make_degradation, sample_rng
from gmd_ray.images.degradation.second_order import SecondOrder, gaussian_noise, poisson_noise
from tests.images.degradation.test_degradations import picture, psnr

# Nothing but the resize to the final size and two rounds of JPEG at 100.
BARE = SecondOrder(
    scale=1, sharpen_weight=0, kernel_size=(1, 1), sinc_prob=0, final_sinc_prob=0, blur_prob2=0,
    resize_up_prob=0, resize_down_prob=0, resize_up_prob2=0, resize_down_prob2=0,
    gaussian_prob=1, noise_sigma=(0, 0), noise_sigma2=(0, 0), jpeg_quality=(100, 100), jpeg_quality2=(100, 100),
)  # fmt: skip


def bare(**changed: object) -> SecondOrder:
    return SecondOrder(**{**BARE.__dict__, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["realesrgan", "weak", "strong"])
def test_an_8_bit_image_of_the_right_size(name: str, scale: int) -> None:
    degrade = make_degradation(name, {"scale": scale})
    hq = picture(96)[:60]
    copy = hq.copy()
    for i in range(8):
        lq = degrade(hq, sample_rng(i))
        assert lq.shape == (60 // scale, 96 // scale, 3)
        assert lq.dtype == np.float32
        assert 0 <= lq.min() < lq.max() <= 1
        assert np.array_equal(lq, np.rint(lq * 255).astype(np.float32) / 255)
    assert np.array_equal(hq, copy)


def test_the_smallest_image_survives() -> None:
    for i in range(10):
        assert SecondOrder()(picture(96)[:4, :4], sample_rng(i)).shape == (1, 1, 3)


def test_a_function_of_the_key_alone() -> None:
    hq = picture()
    first = [SecondOrder()(hq, sample_rng("run", i)) for i in range(6)]
    np.random.seed(3)
    cv2.setRNGSeed(3)
    again = [SecondOrder()(hq, sample_rng("run", i)) for i in reversed(range(6))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({lq.tobytes() for lq in first}) == 6


def test_all_off_is_all_but_the_input() -> None:
    gray = picture()[..., :1].repeat(3, -1)  # JPEG halves the resolution of colour at any quality
    assert np.abs(BARE(gray, sample_rng(0)) - gray).max() < 1.5 / 255


@pytest.mark.parametrize(
    "changed",
    [
        {"sharpen_weight": 0.5},
        {"kernel_size": (21, 21), "blur_sigma": (3, 3)},
        {"kernel_size": (21, 21), "blur_sigma": (0.05, 0.05), "blur_sigma2": (1.5, 1.5), "blur_prob2": 1},
        {"kernel_size": (21, 21), "sinc_prob": 1},
        {"kernel_size": (21, 21), "blur_sigma": (0.05, 0.05), "final_sinc_prob": 1},
        {"resize_down_prob": 1},
        {"resize_down_prob2": 1},
        {"resize_up_prob": 1},
        {"resize_up_prob2": 1},
        {"noise_sigma": (20, 20)},
        {"noise_sigma2": (20, 20)},
        {"gaussian_prob": 0, "poisson_scale2": (0, 0)},
        {"gaussian_prob": 0, "poisson_scale": (0, 0)},
        {"jpeg_quality": (30, 30)},
        {"jpeg_quality2": (30, 30)},
    ],
    ids=lambda changed: next(reversed(changed)),
)
def test_each_stage_does_something(changed: dict) -> None:
    hq = picture()
    changes = [psnr(bare(**changed)(hq, sample_rng(i)), BARE(hq, sample_rng(i))) for i in range(4)]
    assert min(changes) < 44


def test_gaussian_noise_has_its_sigma() -> None:
    colour = gaussian_noise((200, 200, 3), 20, False, sample_rng(0)) * 255
    assert colour.std() == pytest.approx(20, rel=0.02)
    assert abs(colour.mean()) < 0.3
    assert np.abs(np.corrcoef(colour.reshape(-1, 3).T) - np.eye(3)).max() < 0.03
    gray = gaussian_noise((200, 200, 3), 20, True, sample_rng(0)) * 255
    assert gray.shape == (200, 200, 1)
    assert gray.std() == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize(("levels", "photons"), [(256, 256), (64, 64), (40, 64), (9, 16)])
def test_poisson_noise_counts_photons(levels: int, photons: int, gray: bool) -> None:
    """Its variance is the signal over the photons at white: as many as levels, up to a power of two."""
    ramp = np.rint(np.linspace(0, 1, levels) * 255).astype(np.float32) / 255
    x = np.repeat(ramp, 24000 // levels)[None, :, None].repeat(3, -1).repeat(2, 0)
    noise = poisson_noise(x, 1.7, gray, sample_rng(levels))
    assert noise.shape == (*x.shape[:2], 1 if gray else 3)
    for low, high in [(0.2, 0.4), (0.6, 0.8)]:
        band = (x[0, :, 0] > low) & (x[0, :, 0] < high)
        assert noise[:, band].std() == pytest.approx(1.7 * np.sqrt(x[0, band, 0].mean() / photons), rel=0.05)
        assert abs(noise[:, band].mean()) < 4 * noise[:, band].std() / np.sqrt(noise[:, band].size)
    assert np.all(noise[:, x[0, :, 0] == 0] == 0)


def test_gray_noise_is_one_pattern() -> None:
    flat = np.full((64, 64, 3), 0.5, np.float32)
    spread = {p: np.ptp(bare(noise_sigma2=(20, 20), gray_noise_prob=p)(flat, sample_rng(0)), -1).max() for p in (0, 1)}
    assert spread[1] < 4 / 255
    assert spread[0] > 20 / 255


def test_draws_follow_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where the draws arrive: kinds of kernels, their sizes, sigmas and shapes, the sinc filters' cutoffs."""
    gaussians, sincs = [], []
    monkeypatch.setattr(second_order, "gaussian_kernel", lambda *drawn: gaussians.append(drawn) or np.ones((1, 1)))
    monkeypatch.setattr(second_order, "sinc_kernel", lambda *drawn: sincs.append(drawn) or np.ones((1, 1)))
    rng, total = sample_rng("shares"), 6000
    for _ in range(total):
        SecondOrder()._blur_kernel(rng, (0.2, 3.0))

    def share(flags: list[bool]) -> float:
        return sum(flags) / total

    assert len(sincs) / total == pytest.approx(0.1, abs=0.015)
    assert all(np.pi / (3 if size < 13 else 5) <= cutoff <= np.pi for size, cutoff in sincs)
    assert min(cutoff for size, cutoff in sincs if size >= 13) < np.pi / 4
    sizes = [drawn[0] for drawn in gaussians + sincs]
    assert set(sizes) == set(range(7, 22, 2))
    assert all(share([size == s for size in sizes]) == pytest.approx(1 / 8, abs=0.02) for s in set(sizes))
    stretched = [u != v for _, u, v, *_ in gaussians]
    plateau = [drawn[5] for drawn in gaussians]
    assert share(stretched) == pytest.approx(0.9 * 0.31, abs=0.02)
    assert share(plateau) == pytest.approx(0.9 * 0.15, abs=0.02)
    assert all(0.2 <= min(u, v) <= max(u, v) <= 3 for _, u, v, *_ in gaussians)
    betas = np.array([drawn[4] for drawn in gaussians])
    round_ones = np.array(plateau)
    assert share(list(betas < 1)) == pytest.approx(0.9 * 0.15 / 2, abs=0.015)
    assert 0.5 <= betas.min() < 0.6
    assert 3.8 < betas.max() <= 4
    assert np.mean(betas[round_ones] == 1) == pytest.approx(0.5, abs=0.06)
    assert 1.9 < betas[round_ones].max() <= 2


def test_factors_follow_the_shares() -> None:
    rng = sample_rng("factors")
    factors = np.array([second_order._draw_factor(rng, 0.2, 0.7, (0.15, 1.5)) for _ in range(6000)])
    assert np.mean(factors > 1) == pytest.approx(0.2, abs=0.02)
    assert np.mean(factors == 1) == pytest.approx(0.1, abs=0.02)
    assert (factors.min(), factors.max()) == pytest.approx((0.15, 1.5), abs=0.01)
    assert factors[factors < 1].mean() == pytest.approx(0.575, abs=0.02)


def test_the_chain_is_in_the_papers_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage as it is called, with the size of its output, over 300 samples of 96 pixels at x4."""
    calls: list[tuple[str, int]] = []

    def watch(name: str) -> None:
        stage = getattr(second_order, name)

        def watched(*given: object) -> np.ndarray:
            made = stage(*given)
            calls.append((name, made.shape[0]))
            return made

        monkeypatch.setattr(second_order, name, watched)

    for name in ("sharpen", "blur", "resize", "gaussian_noise", "poisson_noise", "jpeg"):
        watch(name)
    runs, ends = [], []
    for i in range(300):
        calls.clear()
        SecondOrder()(picture(), sample_rng("order", i))
        run = list(calls)
        runs.append(run)
        names = ["noise" if "noise" in name else name for name, _ in run]
        assert names[:5] == ["sharpen", "blur", "resize", "noise", "jpeg"]
        second = 6 if names[5] == "blur" else 5
        assert names[second : second + 2] == ["resize", "noise"]
        assert 14 <= run[2][1] <= 144
        assert 7 <= run[second][1] <= 28
        end = names[second + 2 :]
        assert end in (["resize", "blur", "jpeg"], ["resize", "jpeg"], ["jpeg", "resize", "blur"], ["jpeg", "resize"])
        assert run[-1][1] == 24
        ends.append(end)
    assert np.mean(["blur" in run[5] for run in runs]) == pytest.approx(0.8, abs=0.07)
    assert np.mean([end[0] == "jpeg" for end in ends]) == pytest.approx(0.5, abs=0.09)
    assert np.mean(["blur" in end for end in ends]) == pytest.approx(0.8, abs=0.07)
    assert np.mean([run[3][0] == "gaussian_noise" for run in runs]) == pytest.approx(0.5, abs=0.09)
    first = np.array([run[2][1] for run in runs])
    again = np.array([run[6 if "blur" in run[5] else 5][1] for run in runs])
    assert (first.min(), first.max(), again.min(), again.max()) == pytest.approx((14, 144, 7, 28), abs=3)


def test_weak_is_weaker_than_strong() -> None:
    """Distance to the picture shrunk without damage: weak degradations, the full range, strong ones, in this order."""
    hq = picture(128)
    clean = cv2.resize(hq, (32, 32), interpolation=cv2.INTER_AREA)
    weak, full, strong = (
        np.mean([psnr(make_degradation(name)(hq, sample_rng("strength", i)), clean) for i in range(40)])
        for name in ("weak", "realesrgan", "strong")
    )
    assert weak > full + 0.3
    assert full > strong + 0.3


def test_weak_and_strong_are_the_ends_of_the_full_ranges() -> None:
    """The lower and the upper three of eight kernel sizes, and as much of every range of noise."""
    full, weak, strong = (make_degradation(name) for name in ("realesrgan", "weak", "strong"))
    assert (weak.kernel_size, strong.kernel_size) == ((7, 11), (17, 21))
    for field in ("noise_sigma", "noise_sigma2", "poisson_scale", "poisson_scale2"):
        low, high = getattr(full, field)
        part = (high - low) * 3 / 8
        assert getattr(weak, field) == pytest.approx((low, low + part), rel=0.02)
        assert getattr(strong, field) == pytest.approx((high - part, high), rel=0.02)


def test_fields_replaced() -> None:
    made = make_degradation("realesrgan", {"scale": "2", "kernel_size": [7, "9"], "sinc_prob": 0})
    assert made == SecondOrder(scale=2, kernel_size=(7, 9), sinc_prob=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"kernel_sizes": [7, 9]}, r"degradation_args\.kernel_sizes: .*'kernel_size'"),
        ({"blur_prob": 1}, r"degradation_args\.blur_prob: .*'blur_prob2'"),
        ({"kernel_size": [7, 10]}, "two odd numbers from 1 to 21"),
        ({"kernel_size": [7, 23]}, "two odd numbers from 1 to 21"),
        ({"blur_sigma": [0, 3]}, "a sigma is above 0"),
        ({"resize_range": [1.1, 1.5]}, "0 < low <= 1 <= high"),
        ({"resize_range2": [0, 1.5]}, "0 < low <= 1 <= high"),
        ({"plateau_beta": [0.5, 0.9]}, "0 < low <= 1 <= high"),
        ({"resize_up_prob": 0.4}, "resize_up_prob=0.4: with resize_down_prob it is above 1"),
        ({"final_sinc_prob": 1.5}, "a probability"),
        ({"jpeg_quality2": [50, 101]}, "0 to 100"),
        ({"noise_sigma2": [9, 2]}, "low <= high"),
        ({"sharpen_weight": -1}, "a number of at least 0"),
        ({"sharpen_weight": "nan"}, "a number of at least 0"),
        ({"scale": 0}, "an integer of at least 1"),
    ],
)
def test_bad_settings_give_one_line(overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_degradation("realesrgan", overrides)
    assert "\n" not in str(caught.value)

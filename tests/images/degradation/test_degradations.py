"""The degradation chain against its own formula, its statistics, and the order of its draws."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from gmd_ray.errors import ConfigError
from gmd_ray.images.degradation.degradations import PRESETS, Degradation, make_degradation, sample_rng
from gmd_ray.images.degradation.filters import bicubic

GRAY = np.full((200, 200, 3), 0.5, np.float32)


def picture(size: int = 96) -> np.ndarray:
    """Edges, ramps and texture, on the 8-bit grid."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    image = np.stack([x, y, (np.hypot(x - 0.5, y - 0.5) < 0.3).astype(np.float32)], -1)
    image += 0.1 * np.sin(x * 90)[..., None]
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.float32) / 255


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2)))


EVERYTHING = Degradation(
    scale=2, blur_prob=0.7, blur_sigma=(0.2, 2), noise_prob=0.7, noise_sigma=(2, 20), shot_noise=(0, 8),
    gray_noise_prob=0.4, jpeg_prob=0.7, jpeg_quality=(30, 95),
)  # fmt: skip


def digest(key: tuple[object, ...]) -> str:
    return hashlib.sha256(EVERYTHING(picture(), sample_rng(*key)).tobytes()).hexdigest()


def test_a_function_of_the_key_in_any_order_and_process() -> None:
    keys = [(7, f"city/ü {i}.png", 2) for i in range(6)]
    forward = [digest(key) for key in keys]
    assert [digest(key) for key in reversed(keys)] == forward[::-1]
    assert len(set(forward)) == len(keys)
    code = f"from tests.images.degradation.test_degradations import digest; print(*[digest(k) for k in {keys!r}])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split() == forward


def test_keys_do_not_run_into_each_other() -> None:
    streams = {sample_rng(*key).random() for key in [(1, 23), (12, 3), (123,), ("1", "2", "3"), (1, 2, 4)]}
    assert len(streams) == 5
    assert sample_rng(1, "a").random() == sample_rng(np.int64(1), np.str_("a")).random()


def test_global_generators_do_not_matter() -> None:
    before = np.random.get_state()[1].copy()
    np.random.seed(1)
    first = EVERYTHING(picture(), sample_rng(1))
    np.random.seed(2)
    state = np.random.get_state()[1].copy()
    assert np.array_equal(EVERYTHING(picture(), sample_rng(1)), first)
    assert np.array_equal(np.random.get_state()[1], state)
    np.random.seed(int(before[0]))


def test_input_is_left_alone_and_output_is_an_8_bit_image() -> None:
    hq = picture()
    copy = hq.copy()
    for i in range(20):
        lq = EVERYTHING(hq, sample_rng(i))
        assert lq.shape == (48, 48, 3)
        assert lq.dtype == np.float32
        assert 0 <= lq.min() <= lq.max() <= 1
        assert np.array_equal(lq, np.rint(lq * 255).astype(np.float32) / 255)
    assert np.array_equal(hq, copy)


def test_none_changes_nothing() -> None:
    assert np.array_equal(PRESETS["none"](picture(), sample_rng(0)), picture())


def test_order_of_draws() -> None:
    """Models were trained with this stream. Three gates, each drawn whether open or not: blur, noise, JPEG."""
    hq = picture()
    settings = Degradation(
        noise_prob=1, noise_sigma=(5, 50), shot_noise=(1, 9), gray_noise_prob=0.5, jpeg_prob=1, jpeg_quality=(30, 95)
    )
    for i in range(6):
        rng = sample_rng("draws", i)
        rng.random()  # blur
        rng.random()  # noise
        shape = (*hq.shape[:2], 1 if rng.random() < 0.5 else 3)
        x = hq + rng.standard_normal(shape, dtype=np.float32) * (rng.uniform(5, 50) / 255)
        shot = rng.uniform(1, 9) / 255
        x = x + rng.standard_normal(shape, dtype=np.float32) * shot * np.sqrt(np.clip(x, 0, 1))
        rng.random()  # JPEG
        levels = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
        quality = int(round(rng.uniform(30, 95)))
        code = cv2.imencode(".jpg", levels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        expected = cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float32) / 255
        assert np.array_equal(settings(hq, sample_rng("draws", i)), expected)


def test_noise_has_its_sigma() -> None:
    for sigma in (5, 25, 50):
        noise = Degradation(noise_prob=1, noise_sigma=(sigma, sigma))(GRAY, sample_rng(sigma)) - GRAY
        assert abs(float(noise.std()) * 255 - sigma) < 0.02 * sigma + 0.05
        assert abs(float(noise.mean())) * 255 < 5 * sigma / np.sqrt(noise.size) + 0.51  # 0.5 is between two levels
        channels = np.corrcoef(noise.reshape(-1, 3).T)
        assert np.abs(channels - np.eye(3)).max() < 0.03


def test_noise25_is_the_literatures_psnr() -> None:
    assert psnr(PRESETS["noise25"](GRAY, sample_rng(0)), GRAY) == pytest.approx(20 * np.log10(255 / 25), abs=0.1)


def test_gray_noise_is_one_pattern() -> None:
    noisy = Degradation(noise_prob=1, noise_sigma=(20, 20), gray_noise_prob=1)(GRAY, sample_rng(0))
    assert noisy.std() > 0.05
    assert np.array_equal(noisy[..., 0], noisy[..., 1])
    assert np.array_equal(noisy[..., 0], noisy[..., 2])


def test_shot_noise_grows_with_the_root_of_the_signal() -> None:
    settings = Degradation(noise_prob=1, shot_noise=(20, 20))
    for level in (0.16, 0.36, 0.64):
        flat = np.full((200, 200, 3), level, np.float32)
        assert settings(flat, sample_rng(0)).std() * 255 == pytest.approx(20 * np.sqrt(level), rel=0.03)
    assert settings(np.zeros_like(GRAY), sample_rng(0)).max() == 0


def test_sigma_is_uniform_over_its_range() -> None:
    sigmas = [PRESETS["noise"](GRAY[:64, :64], sample_rng("s", i)).std() * 255 for i in range(200)]
    assert 4.5 < min(sigmas) < 8
    assert 45 < max(sigmas) < 52
    assert np.mean(sigmas) == pytest.approx(27.5, abs=3)


def test_probabilities_are_shares_of_samples() -> None:
    settings = Degradation(noise_prob=0.3, noise_sigma=(20, 20))
    changed = [settings(GRAY[:8, :8], sample_rng("p", i)).std() > 0 for i in range(1000)]
    assert np.mean(changed) == pytest.approx(0.3, abs=0.05)


def test_jpeg_quality_is_monotone_and_the_codecs_own() -> None:
    hq = picture()
    outputs = [Degradation(jpeg_prob=1, jpeg_quality=(q, q))(hq, sample_rng(0)) for q in (10, 30, 50, 70, 95)]
    quality = [psnr(lq, hq) for lq in outputs]
    assert quality == sorted(quality)
    assert quality[-1] - quality[0] > 5
    assert abs(float((outputs[-1] - hq).mean((0, 1)).max())) < 0.02  # channels are where they were


def test_blur_is_a_gaussian_of_its_sigma() -> None:
    """The point spread measured by its second moments; equal axes make the angle irrelevant."""
    point = np.zeros((41, 41, 3), np.float32)
    point[18:23, 18:23] = 1
    for sigma in (1.0, 2.0):
        spread = Degradation(blur_prob=1, blur_sigma=(sigma, sigma))(point, sample_rng(0))[..., 0].astype(np.float64)
        y, x = np.mgrid[-20:21, -20:21]
        box = (5**2 - 1) / 12
        for axis in (x, y):
            assert (spread * axis**2).sum() / spread.sum() == pytest.approx(sigma**2 + box, rel=0.08)
        assert spread.sum() == pytest.approx(25, rel=0.02)


def test_zero_sigma_and_flat_images_pass_through_blur() -> None:
    assert np.array_equal(Degradation(blur_prob=1)(picture(), sample_rng(0)), picture())
    blurred = PRESETS["blur"](GRAY * 0 + np.float32(100 / 255), sample_rng(0))
    assert np.array_equal(blurred, np.full_like(GRAY, np.float32(100) / 255))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_scale_is_the_mean_of_blocks(scale: int) -> None:
    hq = picture()
    lq = Degradation(scale=scale)(hq, sample_rng(0))
    blocks = hq.reshape(96 // scale, scale, 96 // scale, scale, 3).mean((1, 3))
    assert lq.shape == blocks.shape
    assert np.abs(lq - blocks).max() <= 0.501 / 255


def test_one_pixel_survives_everything() -> None:
    assert Degradation(blur_prob=1, blur_sigma=(3, 3), noise_prob=1, noise_sigma=(5, 5), jpeg_prob=1)(
        GRAY[:1, :1], sample_rng(0)
    ).shape == (1, 1, 3)


def test_presets_with_fields_replaced() -> None:
    assert make_degradation("noise25") == PRESETS["noise25"]
    made = make_degradation("jpeg", {"jpeg_quality": [40, "60"], "scale": 2, "noise_prob": "0.5"})
    assert made == Degradation(scale=2, noise_prob=0.5, jpeg_prob=1, jpeg_quality=(40, 60))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("nosie", {}, r"source\.degradation='nosie'.*did you mean 'noise'\?"),
        ("noise", {"noise_sigm": [1, 2]}, r"degradation_args\.noise_sigm: .*'noise_sigma'"),
        ("noise", {"noise_sigma": 25}, r"noise_sigma=25: give two numbers, \[low, high\]"),
        ("noise", {"noise_sigma": "25"}, "give two numbers"),
        ("noise", {"noise_sigma": [1, 2, 3]}, "give two numbers"),
        ("noise", {"noise_sigma": ["a", 2]}, "give two numbers"),
        ("noise", {"noise_sigma": [9, 2]}, "low <= high"),
        ("noise", {"noise_sigma": [1, float("inf")]}, "low <= high"),
        ("noise", {"noise_sigma": [float("nan"), 1]}, "low <= high"),
        ("noise", {"noise_prob": 1.5}, r"noise_prob=1\.5: a probability"),
        ("noise", {"noise_prob": "often"}, "noise_prob='often': give a number"),
        ("noise", {"scale": 1.5}, r"scale=1\.5: give a whole number"),
        ("noise", {"scale": 0}, "scale=0: an integer of at least 1"),
        ("jpeg", {"jpeg_quality": [50, 101]}, "0 to 100"),
    ],
)
def test_bad_settings_give_one_line(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_degradation(name, overrides)
    assert "\n" not in str(caught.value)


def test_bicubic_is_matlabs_alone() -> None:
    hq = picture(96)
    lq = make_degradation("bicubic")(hq, sample_rng(0))
    assert np.array_equal(lq, np.rint(np.clip(bicubic(hq, 4), 0, 1) * 255).astype(np.float32) / 255)
    with pytest.raises(ConfigError, match="did you mean 'bicubic'"):
        make_degradation("bicubic", {"downscale": "bicubik"})

"""Synthetic degradations as pure functions of an image and a random generator.

This is the classical chain (blur, downscale, noise, JPEG); Real-ESRGAN's is in `second_order`. Every random draw comes
from the generator that is passed in, and `sample_rng` derives one from each sample's key, so no result depends on the
worker, the order or the size of the cluster. See docs/method.md, "Degradations".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any

import cv2
import numpy as np

from gmd_ray.errors import ConfigError, nearest
from gmd_ray.images.degradation.filters import bicubic, jpeg, to_levels
from gmd_ray.images.degradation.ranges import Range, Steps, check_ranges
from gmd_ray.images.degradation.second_order import SecondOrder

DOWNSCALES = ("area", "bicubic")


def sample_rng(*key: object) -> np.random.Generator:
    """Make the random generator of one sample. Equal keys give equal streams on every machine.

    Args:
        key: values with a stable `str`, such as (run seed, sample id, epoch).
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True)
class Degradation:
    """Ranges of the classical chain. Each draw is uniform in its range.

    Noise is in 8-bit levels (sigma 25 is the denoising literature's 25/255).
    """

    scale: int = 1
    """HQ pixels per LQ pixel along each axis."""
    blur_prob: float = 0.0
    """Probability of blur."""
    blur_sigma: Range = (0.0, 0.0)
    """Standard deviation in pixels, drawn for each of the two axes of a rotated Gaussian."""
    downscale: str = "area"
    """Resampling of the downscaling: `area` (mean of blocks) or `bicubic` (antialiased, as MATLAB's imresize)."""
    noise_prob: float = 0.0
    """Probability of noise."""
    noise_sigma: Range = (0.0, 0.0)
    """Standard deviation of the Gaussian noise in 8-bit levels."""
    shot_noise: Range = (0.0, 0.0)
    """Standard deviation at full white, in 8-bit levels, of noise that is proportional to the root of the signal."""
    gray_noise_prob: float = 0.0
    """Share of noisy samples whose noise is one pattern for all three channels."""
    jpeg_prob: float = 0.0
    """Probability of JPEG compression."""
    jpeg_quality: Range = (95.0, 95.0)
    """JPEG quality, 0 to 100."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.downscale not in DOWNSCALES:
            raise ConfigError(f"degradation downscale={self.downscale!r}: {nearest(self.downscale, DOWNSCALES)}")

    def __call__(self, hq: np.ndarray, rng: np.random.Generator, steps: Steps | None = None) -> np.ndarray:
        """Degrade one image.

        Args:
            hq: float32 RGB in [0, 1], shape (H, W, 3); H and W multiples of `scale`.
            rng: the sample's own generator.
            steps: a list to which each operation and its drawn values are appended.

        Returns:
            float32 RGB in [0, 1], shape (H / scale, W / scale, 3), rounded to 8 bits as a file would be.
        """
        steps = [] if steps is None else steps
        x = hq
        if rng.random() < self.blur_prob:
            sigma_u, sigma_v, angle = (
                rng.uniform(*self.blur_sigma),
                rng.uniform(*self.blur_sigma),
                rng.uniform(0, np.pi),
            )
            steps.append({"operation": "blur", "sigma_u": sigma_u, "sigma_v": sigma_v, "angle": angle})
            x = _anisotropic_blur(x, sigma_u, sigma_v, angle)
        if self.scale > 1:
            height, width = x.shape[0] // self.scale, x.shape[1] // self.scale
            steps.append({"operation": "resize", "height": height, "width": width, "how": self.downscale})
            if self.downscale == "bicubic":
                x = bicubic(x, self.scale)
            else:
                x = cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA)
        if rng.random() < self.noise_prob:
            channels = 1 if rng.random() < self.gray_noise_prob else 3
            shape = (*x.shape[:2], channels)
            # The pattern is drawn before its level. Changing the order would change the data of trained models.
            pattern = rng.standard_normal(shape, dtype=np.float32)
            sigma = rng.uniform(*self.noise_sigma)
            x = x + pattern * (sigma / 255)
            shot = rng.uniform(*self.shot_noise)
            if shot > 0:
                x = x + rng.standard_normal(shape, dtype=np.float32) * (shot / 255) * np.sqrt(np.clip(x, 0, 1))
            steps.append({"operation": "gaussian_noise", "level": sigma, "shot": shot, "gray": channels == 1})
        x = to_levels(x)
        if rng.random() < self.jpeg_prob:
            quality = int(round(rng.uniform(*self.jpeg_quality)))
            steps.append({"operation": "jpeg", "quality": quality})
            x = jpeg(x, quality)
        return x.astype(np.float32) / 255


def _anisotropic_blur(x: np.ndarray, sigma_a: float, sigma_b: float, angle: float) -> np.ndarray:
    radius = max(1, int(np.ceil(3 * max(sigma_a, sigma_b))))
    grid = np.arange(-radius, radius + 1, dtype=np.float32)
    u = np.cos(angle) * grid[None] + np.sin(angle) * grid[:, None]
    v = -np.sin(angle) * grid[None] + np.cos(angle) * grid[:, None]
    floor = 1e-3  # a sigma of zero gives an impulse instead of a division by zero
    kernel = np.exp(-0.5 * ((u / max(sigma_a, floor)) ** 2 + (v / max(sigma_b, floor)) ** 2))
    return cv2.filter2D(x, -1, (kernel / kernel.sum()).astype(np.float32), borderType=cv2.BORDER_REFLECT_101)


PRESETS: dict[str, Degradation | SecondOrder] = {
    "none": Degradation(),
    "blur": Degradation(blur_prob=1, blur_sigma=(0.5, 3.0)),
    "noise": Degradation(noise_prob=1, noise_sigma=(5, 50)),
    "noise25": Degradation(noise_prob=1, noise_sigma=(25, 25)),
    "jpeg": Degradation(jpeg_prob=1, jpeg_quality=(30, 95)),
    "bicubic": Degradation(scale=4, downscale="bicubic"),
    "realesrgan": SecondOrder(),
    # Kernel sizes are the paper's: the lower and the upper three of Real-ESRGAN's eight. The paper leaves the rest
    # open. We also use the lower and the upper 3/8 of the noise ranges, and keep all other settings.
    # See docs/method.md, "Degradations".
    "weak": SecondOrder(
        kernel_size=(7, 11),
        noise_sigma=(1, 12),
        noise_sigma2=(1, 10),
        poisson_scale=(0.05, 1.15),
        poisson_scale2=(0.05, 0.97),
    ),
    "strong": SecondOrder(
        kernel_size=(17, 21),
        noise_sigma=(19, 30),
        noise_sigma2=(16, 25),
        poisson_scale=(1.9, 3),
        poisson_scale2=(1.58, 2.5),
    ),
}


def make_degradation(name: str, overrides: dict[str, Any] | None = None) -> Degradation | SecondOrder:
    """Return a preset with some fields replaced.

    Args:
        name: one of `PRESETS`.
        overrides: field -> value, as read from YAML or the command line.

    Raises:
        ConfigError: the preset or a field is unknown, or a value is invalid.
    """
    if name not in PRESETS:
        raise ConfigError(f"source.degradation={name!r}: no such preset; {nearest(name, PRESETS)}")
    known = {f.name: f.type for f in fields(PRESETS[name])}
    values: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        if key not in known:
            raise ConfigError(f"source.degradation_args.{key}: no such field; {nearest(key, known)}")
        values[key] = _parse(key, value, str(known[key]))
    return replace(PRESETS[name], **values)


def _parse(key: str, value: Any, kind: str) -> int | float | str | Range:
    """Convert a value from YAML or the command line to the type of its field."""
    if kind == "str":
        return str(value)
    wanted = {"int": "a whole number", "float": "a number"}.get(kind, "two numbers, [low, high]")
    try:
        if kind == "Range":
            low, high = map(float, [value] if isinstance(value, str) else value)
            return low, high
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"source.degradation_args.{key}={value!r}: give {wanted}") from error
    if kind == "float":
        return number
    if not number.is_integer():
        raise ConfigError(f"source.degradation_args.{key}={value!r}: give {wanted}")
    return int(number)

"""Real-ESRGAN's second-order degradation: blur, resize, noise and JPEG, twice, and a sinc filter at the end.

The source is section 3 of Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic
Data", with the settings of its reference code (options/train_realesrgan_x4plus.yml). Four things differ on purpose:

* Every sample has its own draws. The reference shares resize factors, the second blur and the final order in a batch.
* JPEG is the real codec, not a differentiable model of it.
* A resize maps the whole image onto the whole image. The reference rounds the size after fixing the coordinates, which
  shifts the far border by less than a pixel.
* Only the image that is degraded is sharpened first. The reference also sharpens the HQ image of the losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from gmd_ray.errors import ConfigError
from gmd_ray.images.degradation.filters import (
    Resampling,
    blur,
    gaussian_kernel,
    jpeg,
    resize,
    sharpen,
    sinc_kernel,
    to_levels,
)
from gmd_ray.images.degradation.ranges import Range, Steps, check_ranges
from gmd_ray.images.luma import TORCHVISION

# (share, plateau, generalised, rotated and stretched, name)
_KERNELS = (
    (0.45, False, False, False, "iso"),
    (0.25, False, False, True, "aniso"),
    (0.12, False, True, False, "generalized_iso"),
    (0.03, False, True, True, "generalized_aniso"),
    (0.12, True, True, False, "plateau_iso"),
    (0.03, True, True, True, "plateau_aniso"),
)
_MODES: tuple[Resampling, ...] = get_args(Resampling)


@dataclass(frozen=True)
class SecondOrder:
    """Ranges of the second-order chain. The defaults are Real-ESRGAN's.

    Fields ending in 2 belong to the second round and otherwise mean the same. Each draw is uniform in its range. Sigmas
    of noise are in 8-bit levels, those of blur in pixels of the image at that point of the chain.
    """

    scale: int = 4
    """HQ pixels per LQ pixel along each axis."""
    sharpen_weight: float = 0.5
    """Strength of the unsharp masking of the input, 0 for none. The HQ image of the pair is not sharpened."""
    kernel_size: Range = (7, 21)
    """Smallest and largest side of all three kernels, odd, at most 21; all odd sides between are equally likely."""
    sinc_prob: float = 0.1
    """Share of blurs that are a sinc filter, in either round."""
    final_sinc_prob: float = 0.8
    """Probability of the final sinc filter."""
    blur_sigma: Range = (0.2, 3.0)
    """Standard deviation of blur kernels."""
    blur_sigma2: Range = (0.2, 1.5)
    blur_prob2: float = 0.8
    """Probability of the second blur; the first is always applied."""
    generalized_beta: Range = (0.5, 4.0)
    """Shape of generalised Gaussians: half are drawn between the lower bound and 1, half between 1 and the upper."""
    plateau_beta: Range = (1.0, 2.0)
    """Shape of plateau kernels, drawn in the same way."""
    resize_up_prob: float = 0.2
    """Probability of enlarging."""
    resize_down_prob: float = 0.7
    """Probability of shrinking; with the rest, the size stays."""
    resize_range: Range = (0.15, 1.5)
    """Smallest factor of shrinking and largest factor of enlarging."""
    resize_up_prob2: float = 0.3
    resize_down_prob2: float = 0.4
    resize_range2: Range = (0.3, 1.2)
    """Smallest and largest factor of the second resize, relative to the final size."""
    gaussian_prob: float = 0.5
    """Share of Gaussian noise in either round; the rest is Poisson noise."""
    noise_sigma: Range = (1.0, 30.0)
    """Standard deviation of Gaussian noise."""
    noise_sigma2: Range = (1.0, 25.0)
    poisson_scale: Range = (0.05, 3.0)
    """Factor on Poisson noise. At 1, full white has as many photons as the image has levels (see `poisson_noise`)."""
    poisson_scale2: Range = (0.05, 2.5)
    gray_noise_prob: float = 0.4
    """Share of noise that is one pattern for all three channels, in either round."""
    jpeg_quality: Range = (30.0, 95.0)
    """JPEG quality, 0 to 100."""
    jpeg_quality2: Range = (30.0, 95.0)

    def __post_init__(self) -> None:
        check_ranges(self)
        sizes = self.kernel_size
        if not (sizes[0] >= 1 and sizes[1] <= 21 and all(side % 2 == 1 for side in sizes)):
            raise ConfigError(f"degradation kernel_size={sizes}: give two odd numbers from 1 to 21")
        if not 0 <= self.sharpen_weight < np.inf:
            raise ConfigError(f"degradation sharpen_weight={self.sharpen_weight}: a number of at least 0")
        for name in ("blur_sigma", "blur_sigma2"):
            if getattr(self, name)[0] == 0:
                raise ConfigError(f"degradation {name}={getattr(self, name)}: a sigma is above 0")
        for name in ("generalized_beta", "plateau_beta", "resize_range", "resize_range2"):
            low, high = getattr(self, name)
            if not 0 < low <= 1 <= high:
                raise ConfigError(f"degradation {name}=({low}, {high}): give (low, high) with 0 < low <= 1 <= high")
        for up, down in (("resize_up_prob", "resize_down_prob"), ("resize_up_prob2", "resize_down_prob2")):
            # Decimal fractions that add up to 1 may exceed it by a rounding error.
            if getattr(self, up) + getattr(self, down) > 1 + 1e-9:
                raise ConfigError(f"degradation {up}={getattr(self, up)}: with {down} it is above 1")

    def __call__(self, hq: np.ndarray, rng: np.random.Generator, steps: Steps | None = None) -> np.ndarray:
        """Degrade one image.

        Args:
            hq: float32 RGB in [0, 1], shape (H, W, 3); H and W multiples of `scale`.
            rng: the sample's own generator.
            steps: a list to which each operation and its drawn values are appended.

        Returns:
            float32 RGB in [0, 1], shape (H / scale, W / scale, 3), rounded to 8 bits as a file would be.
        """
        height, width = hq.shape[:2]
        size = (height // self.scale, width // self.scale)

        x = sharpen(hq, self.sharpen_weight) if self.sharpen_weight else hq
        x = blur(x, self._blur_kernel(rng, self.blur_sigma, steps))
        factor = _draw_factor(rng, self.resize_up_prob, self.resize_down_prob, self.resize_range)
        x = _resize(x, height * factor, width * factor, rng, steps)
        x = self._noise(x, rng, self.noise_sigma, self.poisson_scale, steps)
        x = _jpeg(x, rng, self.jpeg_quality, steps)

        if rng.random() < self.blur_prob2:
            x = blur(x, self._blur_kernel(rng, self.blur_sigma2, steps))
        factor = _draw_factor(rng, self.resize_up_prob2, self.resize_down_prob2, self.resize_range2)
        x = _resize(x, height / self.scale * factor, width / self.scale * factor, rng, steps)
        x = self._noise(x, rng, self.noise_sigma2, self.poisson_scale2, steps)
        if rng.random() < 0.5:
            x = _jpeg(self._to_size(x, *size, rng, steps), rng, self.jpeg_quality2, steps)
        else:
            x = self._to_size(_jpeg(x, rng, self.jpeg_quality2, steps), *size, rng, steps)
        return to_levels(x).astype(np.float32) / 255

    def _blur_kernel(self, rng: np.random.Generator, sigma: Range, steps: Steps | None = None) -> np.ndarray:
        size = self._draw_size(rng)
        if rng.random() < self.sinc_prob:
            # A small kernel cannot represent the long waves of a low cutoff.
            return _sinc(size, rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi), steps)
        kind = rng.choice(len(_KERNELS), p=[kernel[0] for kernel in _KERNELS])
        _, plateau, generalized, rotated, name = _KERNELS[kind]
        sigma_u = sigma_v = rng.uniform(*sigma)
        angle = 0.0
        if rotated:
            sigma_v, angle = rng.uniform(*sigma), rng.uniform(-np.pi, np.pi)
        beta = 1.0
        if generalized:
            low, high = self.plateau_beta if plateau else self.generalized_beta
            beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
        _note(steps, "blur", kernel=name, size=size, sigma_u=sigma_u, sigma_v=sigma_v, angle=angle, beta=beta)
        return gaussian_kernel(size, sigma_u, sigma_v, angle, beta, plateau)

    def _draw_size(self, rng: np.random.Generator) -> int:
        low, high = (int(side) for side in self.kernel_size)
        return low + 2 * int(rng.integers((high - low) // 2 + 1))

    def _noise(
        self, x: np.ndarray, rng: np.random.Generator, sigma: Range, scale: Range, steps: Steps | None
    ) -> np.ndarray:
        gaussian, gray = bool(rng.random() < self.gaussian_prob), bool(rng.random() < self.gray_noise_prob)
        if gaussian:
            level = rng.uniform(*sigma)
            noise = gaussian_noise(x.shape, level, gray, rng)
        else:
            level = rng.uniform(*scale)
            noise = poisson_noise(x, level, gray, rng)
        _note(steps, "gaussian_noise" if gaussian else "poisson_noise", level=level, gray=gray)
        return np.clip(x + noise, 0, 1)

    def _to_size(
        self, x: np.ndarray, height: int, width: int, rng: np.random.Generator, steps: Steps | None
    ) -> np.ndarray:
        """Resize to the final size, and apply the final sinc filter with its probability."""
        x = _resize(x, height, width, rng, steps)
        if rng.random() < self.final_sinc_prob:
            x = blur(x, _sinc(self._draw_size(rng), rng.uniform(np.pi / 3, np.pi), steps))
        return x


def gaussian_noise(shape: tuple[int, ...], sigma: float, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw Gaussian noise for an image.

    Args:
        shape: shape of the image, (H, W, 3).
        sigma: standard deviation in 8-bit levels.
        gray: draw one pattern for all channels.
        rng: the sample's own generator.

    Returns:
        float32, (H, W, 3), or (H, W, 1) if gray.
    """
    noise = rng.standard_normal((*shape[:2], 1 if gray else shape[2]), dtype=np.float32)
    return noise * np.float32(sigma / 255)


def poisson_noise(x: np.ndarray, scale: float, gray: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw the noise of counting photons, times a factor (BasicSR, basicsr/data/degradations.py).

    Full white corresponds to as many photons as the image has distinct 8-bit levels, rounded up to a power of two.

    Args:
        x: float32 RGB, (H, W, 3); rounded to 8 bits first.
        scale: factor on the noise.
        gray: count the photons of the luma, and use the same noise for each channel.
        rng: the sample's own generator.

    Returns:
        float32, (H, W, 3), or (H, W, 1) if gray; its mean is 0.
    """
    levels = to_levels((x @ np.array(TORCHVISION, np.float32))[..., None] if gray else x)
    distinct = np.count_nonzero(np.bincount(levels.ravel()))
    photons = 2 ** int(np.ceil(np.log2(distinct)))
    expected = levels * (photons / 255)
    return ((rng.poisson(expected) - expected) * (scale / photons)).astype(np.float32)


def _draw_factor(rng: np.random.Generator, up: float, down: float, limits: Range) -> float:
    which = rng.random()
    if which < up:
        return rng.uniform(1, limits[1])
    return rng.uniform(limits[0], 1) if which < up + down else 1.0


def _resize(x: np.ndarray, height: float, width: float, rng: np.random.Generator, steps: Steps | None) -> np.ndarray:
    how = _MODES[rng.integers(len(_MODES))]
    rows, columns = max(1, int(height)), max(1, int(width))
    _note(steps, "resize", height=rows, width=columns, how=how)
    return resize(x, rows, columns, how)


def _jpeg(x: np.ndarray, rng: np.random.Generator, quality: Range, steps: Steps | None) -> np.ndarray:
    drawn = int(round(rng.uniform(*quality)))
    _note(steps, "jpeg", quality=drawn)
    return jpeg(to_levels(x), drawn).astype(np.float32) / 255


def _sinc(size: int, cutoff: float, steps: Steps | None) -> np.ndarray:
    _note(steps, "sinc", size=size, cutoff=cutoff)
    return sinc_kernel(size, cutoff)


def _note(steps: Steps | None, operation: str, **drawn: Any) -> None:
    if steps is not None:
        steps.append({"operation": operation, **drawn})

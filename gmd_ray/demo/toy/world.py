"""The toy world: small procedural images with sharp edges, and three degradations of them.

An image is a function of (seed, split, index). Splits never share an image, since the name of the split is part of the
key.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gmd_ray.images.degradation.degradations import Degradation, sample_rng

SIZE = 64
_SUPERSAMPLE = 2
_GLYPHS = "ABCDEFGHJKLMNPRSTUVXYZ23456789&#%"

PALETTE = np.array(
    [
        [0.93, 0.90, 0.84], [0.12, 0.12, 0.15], [0.84, 0.20, 0.18], [0.16, 0.38, 0.70], [0.95, 0.77, 0.18],
        [0.20, 0.58, 0.34], [0.55, 0.30, 0.60], [0.93, 0.52, 0.20], [0.45, 0.72, 0.82], [0.50, 0.38, 0.28],
    ],
    dtype=np.float32,
)  # fmt: skip

SOURCE = Degradation(
    blur_prob=1, blur_sigma=(0.2, 0.7), noise_prob=1, noise_sigma=(0, 6), shot_noise=(0, 4),
    jpeg_prob=1, jpeg_quality=(80, 96),
)  # fmt: skip
"""The mild degradation of the source domain, on which the student was trained."""

TARGET = Degradation(
    blur_prob=1, blur_sigma=(0.9, 1.5), noise_prob=1, noise_sigma=(6, 16), shot_noise=(2, 8),
    jpeg_prob=1, jpeg_quality=(45, 75),
)  # fmt: skip
"""The degradation of the target domain: more blur, noise and compression."""

WEB = Degradation(
    blur_prob=0.8, blur_sigma=(0.3, 1.9), noise_prob=0.7, noise_sigma=(0, 18), shot_noise=(0, 8),
    jpeg_prob=0.6, jpeg_quality=(30, 92),
)  # fmt: skip
"""The generic low quality of a web-scale corpus, which the teacher saw beside clean images."""


def draw(seed: int, split: str, index: int, size: int = SIZE) -> np.ndarray:
    """Draw one clean image: float32 RGB in [0, 1], shape (size, size, 3), rounded to 8-bit levels."""
    rng = sample_rng(seed, split, index)
    n = size * _SUPERSAMPLE
    y, x = np.mgrid[0:n, 0:n].astype(np.float32) / n
    angle = rng.uniform(0, 2 * np.pi)
    ramp = (np.cos(angle) * x + np.sin(angle) * y)[..., None]
    a, b = _color(rng), _color(rng)
    canvas = a + (b - a) * 0.5 * (ramp - ramp.min())
    for _ in range(rng.integers(3, 7)):
        mask = _shape_mask(rng, n)
        canvas = np.where(mask[..., None], _texture(rng, x, y), canvas)
    if rng.random() < 0.6:
        canvas = np.where(_glyph_mask(rng, n)[..., None], _color(rng), canvas)
    small = canvas.reshape(size, _SUPERSAMPLE, size, _SUPERSAMPLE, 3).mean((1, 3))
    return np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8).astype(np.float32) / 255


def _color(rng: np.random.Generator) -> np.ndarray:
    jitter = rng.uniform(-0.025, 0.025, 3)
    return np.clip(PALETTE[rng.integers(len(PALETTE))] + jitter, 0, 1).astype(np.float32)


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    kind = rng.random()
    a, b = _color(rng), _color(rng)
    if kind < 0.6:
        return a
    period = rng.uniform(0.09, 0.2)
    angle = rng.uniform(0, np.pi)
    u = np.floor((np.cos(angle) * x + np.sin(angle) * y) / period).astype(int)
    if kind < 0.85:
        return np.where((u % 2 == 0)[..., None], a, b)
    v = np.floor((-np.sin(angle) * x + np.cos(angle) * y) / period).astype(int)
    return np.where(((u + v) % 2 == 0)[..., None], a, b)


def _shape_mask(rng: np.random.Generator, n: int) -> np.ndarray:
    image = Image.new("L", (n, n))
    pen = ImageDraw.Draw(image)
    cx, cy = rng.uniform(0.05, 0.95, 2) * n
    r = rng.uniform(0.12, 0.36) * n
    kind = rng.integers(5)
    if kind == 0:
        pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=255)
    elif kind == 1:
        pen.ellipse([cx - r, cy - r, cx + r, cy + r], outline=255, width=int(r * rng.uniform(0.25, 0.5)))
    elif kind == 4:
        angle = rng.uniform(0, 2 * np.pi)
        d, t = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        corner = np.array([cx, cy])
        pen.polygon(
            [
                tuple(p)
                for p in (corner - 3 * n * t, corner + 3 * n * t, corner + 3 * n * (t + d), corner + 3 * n * (d - t))
            ],
            fill=255,
        )
    else:
        sides = 4 if kind == 2 else 3
        angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(sides) / sides
        stretch = rng.uniform(0.6, 1.0)
        pen.polygon([(cx + r * np.cos(a), cy + r * stretch * np.sin(a)) for a in angles], fill=255)
    return np.asarray(image) > 127


def _glyph_mask(rng: np.random.Generator, n: int) -> np.ndarray:
    image = Image.new("L", (n, n))
    font = ImageFont.load_default(size=int(n * rng.uniform(0.35, 0.75)))
    glyph = _GLYPHS[rng.integers(len(_GLYPHS))]
    ImageDraw.Draw(image).text(
        tuple(rng.uniform(0.25, 0.75, 2) * n), glyph, fill=255, font=font, anchor="mm",
        stroke_width=int(rng.integers(0, 4)),
    )  # fmt: skip
    return np.asarray(image) > 127

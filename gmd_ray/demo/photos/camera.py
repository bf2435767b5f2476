"""A camera with a small sensor at high ISO, simulated from the light of a scene to the JPEG file.

Light passes lens and anti-aliasing filter, colour filters, an RGGB mosaic with shot noise and read noise, and a 12-bit
converter; demosaicing, white balance, a colour matrix, the sRGB curve, noise reduction, sharpening and JPEG with halved
colour resolution make the picture of it. The noise that is left is correlated between pixels and channels, which white
Gaussian noise is not. The section "Demo" of docs/decisions.md says what its parameters were compared with.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from gmd_ray.demo.photos.demosaic import demosaic, mosaic

Range = tuple[float, float]

_WHITE, _BLACK = 4095, 256
"""Largest value and black level of the converter."""
_HEADROOM = 0.9
"""Share of the converter's range that a white surface fills, above black."""


@dataclass(frozen=True)
class Camera:
    """Ranges of the settings of one shot, each drawn uniformly unless stated otherwise."""

    lens: Range = (0.9, 1.1)
    """Standard deviation of the Gaussian of lens and anti-aliasing filter, in pixels."""
    electrons: Range = (400.0, 1600.0)
    """Electrons at white; fewer mean a higher ISO. The logarithm is uniform."""
    read_noise: Range = (2.0, 5.0)
    """Standard deviation of the read noise in electrons."""
    red_gain: Range = (1.7, 2.1)
    """White balance of red over green."""
    blue_gain: Range = (1.4, 1.9)
    """White balance of blue over green."""
    matrix: tuple[tuple[float, float, float], ...] = (
        (1.62, -0.50, -0.12),
        (-0.22, 1.50, -0.28),
        (0.02, -0.48, 1.46),
    )
    """Colours of the camera to linear sRGB; each row sums to 1."""
    luma_smoothing: float = 0.7
    """Noise reduction: standard deviation of a Gaussian on luma, in pixels."""
    chroma_smoothing: float = 1.6
    """Noise reduction: standard deviation of a Gaussian on both chroma channels, in pixels."""
    sharpening: Range = (0.2, 0.5)
    """Weight of an unsharp mask of 1 pixel on luma."""
    jpeg_quality: tuple[int, int] = (85, 95)
    """JPEG quality, both ends included."""


@dataclass(frozen=True)
class Shot:
    """One picture of a scene: uint8 RGB, (H, W, 3) each."""

    picture: np.ndarray
    """The camera's JPEG, decoded."""
    truth: np.ndarray
    """The same shot without noise and JPEG: what the mean of many shots of the scene would be."""


@dataclass(frozen=True)
class _Settings:
    """The values drawn for one shot."""

    lens: float
    electrons: float
    read_noise: float
    red_gain: float
    blue_gain: float
    sharpening: float
    jpeg_quality: int

    @classmethod
    def draw(cls, camera: Camera, rng: np.random.Generator) -> _Settings:
        return cls(
            lens=rng.uniform(*camera.lens),
            electrons=float(np.exp(rng.uniform(*np.log(camera.electrons)))),
            read_noise=rng.uniform(*camera.read_noise),
            red_gain=rng.uniform(*camera.red_gain),
            blue_gain=rng.uniform(*camera.blue_gain),
            sharpening=rng.uniform(*camera.sharpening),
            jpeg_quality=int(rng.integers(*camera.jpeg_quality, endpoint=True)),
        )


def shoot(scene: np.ndarray, rng: np.random.Generator, camera: Camera | None = None) -> Shot:
    """Take one picture of a photograph.

    Args:
        scene: uint8 RGB, (H, W, 3), H and W even.
        rng: generator of the settings and of the noise.
        camera: ranges of the settings.
    """
    camera = camera or Camera()
    drawn = _Settings.draw(camera, rng)
    matrix = np.array(camera.matrix, np.float32)
    gains = np.array([drawn.red_gain, 1, drawn.blue_gain], np.float32)
    light = smooth(_to_linear(scene / 255.0).astype(np.float32), drawn.lens)
    filtered = np.clip(light @ np.linalg.inv(matrix).T, 0, None) / gains
    electrons = np.clip(mosaic(filtered), 0, 1) * drawn.electrons
    counted = rng.poisson(electrons) + rng.normal(0, drawn.read_noise, electrons.shape)

    def develop(values: np.ndarray) -> np.ndarray:
        linear = demosaic((values / drawn.electrons).astype(np.float32)) * gains @ matrix.T
        return _finish(_to_srgb(linear).astype(np.float32), camera, drawn.sharpening)

    return Shot(_jpeg(develop(_convert(counted, drawn.electrons)), drawn.jpeg_quality), develop(electrons))


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    """Convolve each channel with a Gaussian; borders are mirrored without repeating the edge."""
    return cv2.GaussianBlur(x, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)


def _convert(electrons: np.ndarray, at_white: float) -> np.ndarray:
    """Pass electrons through the 12-bit converter, which rounds and clips, and express its values in electrons."""
    gain = _WHITE / at_white * _HEADROOM
    return (np.clip(np.rint(electrons * gain + _BLACK), 0, _WHITE) - _BLACK) / gain


def _finish(rgb: np.ndarray, camera: Camera, sharpening: float) -> np.ndarray:
    """Reduce noise and sharpen: float32 sRGB in [0, 1] to uint8."""
    ycc = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)
    luma = smooth(ycc[..., 0], camera.luma_smoothing)
    luma = luma + sharpening * (luma - smooth(luma, 1.0))
    chroma = [smooth(ycc[..., channel], camera.chroma_smoothing) for channel in (1, 2)]
    finished = cv2.cvtColor(np.dstack([luma, *chroma]).astype(np.float32), cv2.COLOR_YCrCb2RGB)
    return np.rint(np.clip(finished, 0, 1) * 255).astype(np.uint8)


def _jpeg(rgb: np.ndarray, quality: int) -> np.ndarray:
    """Pass uint8 RGB through JPEG with colour at half the resolution."""
    halved = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, halved]
    _, code = cv2.imencode(".jpg", rgb[..., ::-1], settings)
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1])


def _to_linear(srgb: np.ndarray) -> np.ndarray:
    """Undo the sRGB curve (IEC 61966-2-1) of values in [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _to_srgb(linear: np.ndarray) -> np.ndarray:
    """Apply the sRGB curve (IEC 61966-2-1); values outside [0, 1] are clipped."""
    x = np.clip(linear, 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.power(np.maximum(x, 1e-8), 1 / 2.4) - 0.055)

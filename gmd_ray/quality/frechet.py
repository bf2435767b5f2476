"""FID: how far the features of restored images are from those of the ground truth, as sets.

The network is the Inception of the FID papers, as pytorch-fid distributes it (`pt_inception-2015-12-05-6726825d.pth`,
not shipped here and never fetched); images come to its 299 x 299 pixels by bicubic resampling with antialiasing, as in
clean-fid. FID is biased upwards on few images: compare values of test sets of one size only.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from gmd_ray.errors import DataError
from gmd_ray.quality.catalogue import MetricUnavailable, pyiqa_installed
from gmd_ray.quality.inputs import pick_device, prepare

SIDE = 299


def frechet_distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features, (N, D) and (M, D).

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64. With S = A'A of centred and scaled features A, the
    eigenvalues of S1 S2 are the squared singular values of A1 A2', so no (D, D) matrix and no square root of one, which
    fewer images than D make singular, is ever formed.

    Raises:
        DataError: fewer than two images on a side, which have no covariance.
    """
    if min(len(ours), len(theirs)) < 2:
        raise DataError("it compares sets of two images or more")
    means, spreads = [], []
    for features in (ours.astype(np.float64), theirs.astype(np.float64)):
        means.append(features.mean(axis=0))
        spreads.append((features - means[-1]) / np.sqrt(len(features) - 1))
    traces = sum(float((spread**2).sum()) for spread in spreads)
    cross = float(np.linalg.svd(spreads[0] @ spreads[1].T, compute_uv=False).sum())
    return float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * cross


class FrechetDistance:
    """`fid` as a `SetMetric`.

    Args:
        network: (1, 3, 299, 299) in [-1, 1] to features, (1, D) or (1, D, 1, 1).
        device: auto, cpu, cuda or cuda:N.
        crop_border: pixels cut from each side first.
    """

    name = "fid"
    higher_is_better = False
    needs_reference = True

    def __init__(self, network: nn.Module, device: str = "auto", crop_border: int = 0) -> None:
        self._device = pick_device(device, "evaluation.device")
        self._network = network.to(self._device).eval()
        self._crop_border = crop_border

    def features(self, image: torch.Tensor) -> np.ndarray:
        """One image, RGB in [0, 1], (3, H, W), rounded to 8 bits, to float32 features (D,).

        Raises:
            DataError: an image that cannot be measured.
        """
        pixels = prepare(image, torch.device("cpu"), self._crop_border)[0].float().numpy()
        planes = [Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for plane in pixels]
        x = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1) * 2 - 1
        with torch.inference_mode():
            return self._network(x[None].to(self._device)).flatten().float().cpu().numpy()


def load_fid(weights: str | None, device: str, crop_border: int) -> FrechetDistance:
    """FID over Inception features from a local file.

    Raises:
        MetricUnavailable: no file, one of another network, or no pyiqa, which has the network.
    """
    return FrechetDistance(_inception(weights), device, crop_border)


def _inception(weights: str | None) -> nn.Module:
    if weights is None:
        raise _unavailable(
            "it needs the network's weights, set evaluation.weights.fid to pt_inception-2015-12-05-6726825d.pth "
            "of pytorch-fid"
        )
    if not Path(weights).is_file():
        raise _unavailable(f"evaluation.weights.fid={weights}: no such file")
    if not pyiqa_installed():
        raise _unavailable("pyiqa is not installed; pip install 'gmd_ray[metrics]' (its licence is non-commercial)")
    from pyiqa.archs import inception

    def load(network: nn.Module, *args: object, **kwargs: object) -> None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    # The builder fetches its weights by URL and knows no file.
    fetch, inception.load_pretrained_network = inception.load_pretrained_network, load
    try:
        return _Pooled(inception.InceptionV3([3]))
    except (RuntimeError, OSError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        text = " ".join(str(error).split())[:200]
        raise _unavailable(f"evaluation.weights.fid={weights}: not the weights of FID's Inception ({text})") from error
    finally:
        inception.load_pretrained_network = fetch


class _Pooled(nn.Module):
    """pyiqa's network gives a list of the outputs asked for."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._network(x)[0]


def _unavailable(reason: str) -> MetricUnavailable:
    return MetricUnavailable(f"metric 'fid' is unavailable: {reason}")

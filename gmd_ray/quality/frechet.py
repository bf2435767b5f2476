"""FID: the distance between the features of restored images and those of the ground truths, as two sets.

The network is the Inception of the FID papers in the weights of pytorch-fid (`pt_inception-2015-12-05-6726825d.pth`).
Images are resized to its 299 x 299 pixels by bicubic resampling with antialiasing, as in clean-fid. FID is biased
upwards on few images: compare values of test sets of one size only.
"""

from __future__ import annotations

import pickle

import numpy as np
import torch
from PIL import Image
from torch import nn

from gmd_ray.devices import choose_device
from gmd_ray.quality.catalogue import MetricUnavailable
from gmd_ray.quality.inputs import prepare
from gmd_ray.quality.missing_weights import local_weights, missing_weights
from gmd_ray.quality.weight_files import FILES
from gmd_ray.text import one_line

SIDE = 299
"""Side of the network's input in pixels."""
LOGITS = 1008
"""Outputs of the network's last layer, which FID does not use but its weight file holds."""


class FrechetDistance:
    """The metric `fid`; a `SetMetric`.

    Args:
        network: maps (1, 3, 299, 299) in [-1, 1] to features, (1, D) or (1, D, 1, 1).
        device: auto, cpu, cuda or cuda:N.
        crop_border: pixels cut from each side before the resize.
    """

    name = "fid"
    higher_is_better = False
    needs_reference = True

    def __init__(self, network: nn.Module, device: str = "auto", crop_border: int = 0) -> None:
        self._device = choose_device(device, "evaluation.device")
        self._network = network.to(self._device).eval()
        self._crop_border = crop_border

    def features(self, image: torch.Tensor) -> np.ndarray:
        """Compute the float32 features (D,) of one RGB image in [0, 1], (3, H, W), rounded to 8 bits.

        Raises:
            DataError: an image that cannot be measured.
        """
        pixels = prepare(image, torch.device("cpu"), self._crop_border)[0].float().numpy()
        planes = [Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for plane in pixels]
        x = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1) * 2 - 1
        with torch.inference_mode():
            return self._network(x[None].to(self._device)).flatten().float().cpu().numpy()


def load_fid(weights: str | None, device: str, crop_border: int, directory: str | None = None) -> FrechetDistance:
    """Load FID with the Inception weights of this machine.

    Args:
        weights, directory: see `quality.load_metric`.

    Raises:
        MetricUnavailable: no weight file, one of another network, or no pyiqa, whose network blocks are used.
    """
    missing = missing_weights("fid", weights, "evaluation.weights.fid", directory)
    if missing:
        raise _unavailable("; ".join(entry.reason for entry in missing))
    local, root = local_weights("fid", weights, directory)
    return FrechetDistance(_inception(str(local or FILES["fid"][0].place(root))), device, crop_border)


def _inception(weights: str) -> nn.Module:
    """Build torchvision's Inception with the blocks in which that of the FID papers differs, without its last layer.

    pyiqa has a function for this that knows an address instead of a file; the blocks are its own, which are those of
    pytorch-fid (inception.py).

    Raises:
        MetricUnavailable: not a file of this network's weights.
    """
    import torchvision
    from pyiqa.archs.inception import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2

    network = torchvision.models.inception_v3(
        weights=None, num_classes=LOGITS, aux_logits=False, init_weights=False, transform_input=False
    )
    network.Mixed_5b = FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = FIDInceptionE_1(1280)
    network.Mixed_7c = FIDInceptionE_2(2048)
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        text = one_line(error, 200)
        raise _unavailable(f"{weights}: not the weights of FID's Inception ({text})") from error
    network.fc = nn.Identity()  # the features are the input of the last layer: (1, 2048)
    return network


def _unavailable(reason: str) -> MetricUnavailable:
    return MetricUnavailable(f"metric 'fid' is unavailable: {reason}")

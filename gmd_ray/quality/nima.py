"""A scorer of the NIMA form: a small network that predicts a distribution over the scores 1 to 10.

Talebi and Milanfar, "NIMA: Neural Image Assessment" (2018): ten bins, trained with the earth mover's distance between
cumulative distributions; the score is the mean of the predicted distribution. This network is small enough to train on
a CPU in half a minute. Its input is the image and its high-pass, and it pools both mean and standard deviation, because
sharpness and noise show in these.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from gmd_ray.errors import DataError, ModelError
from gmd_ray.quality.inputs import eight_bit
from gmd_ray.text import one_line
from gmd_ray.weights import node_copy

BINS = 10
"""The scores 1 to 10 of the AVA data set, for which NIMA and the paper's threshold of 4.2 are made."""


class NimaScorer(nn.Module):
    """A network that predicts a distribution over the scores 1 to 10 for images of any size; a `Scorer`.

    Args:
        channels: widths of the three convolution stages; the default has 41k parameters.
    """

    higher_is_better = True

    def __init__(self, channels: Sequence[int] = (24, 48, 64)) -> None:
        super().__init__()
        if len(channels) != 3 or min(channels) < 1:
            raise ModelError(f"NimaScorer channels={list(channels)}: three widths of at least 1")
        self.channels = tuple(int(width) for width in channels)
        widths = (6, *self.channels)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
            )
            for before, after in itertools.pairwise(widths)
        )
        self.head = nn.Linear(2 * widths[-1], BINS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Predict (B, 10) probabilities of the scores 1 to 10 for RGB images in [0, 1], (B, 3, H, W)."""
        blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        x = torch.cat([(images - 0.5) / 0.25, (images - blurred) / 0.05], dim=1)  # both near unit variance
        for index, stage in enumerate(self.stages):
            if index > 0:
                x = F.avg_pool2d(x, 2, ceil_mode=True)  # with floor, an image of one pixel would vanish
            x = stage(x)
        mean = x.mean((2, 3))
        spread = torch.sqrt(((x - mean[:, :, None, None]) ** 2).mean((2, 3)) + 1e-6)
        return self.head(torch.cat([mean, spread], dim=1)).softmax(dim=1)

    @torch.no_grad()
    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Score RGB images in [0, 1], (B, 3, H, W); returns float32 (B,) mean scores in [1, 10].

        Images are rounded to 8 bits first, as the pair store holds them, and scored one at a time, so that no value
        depends on the rest of its batch. The module is put in eval mode.

        Raises:
            DataError: another shape, or NaN.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise DataError(f"a scorer takes RGB images of shape (B, 3, H, W), not {tuple(images.shape)}")
        self.eval()
        device = self.head.weight.device
        prepared = eight_bit(images.detach().to(device).float())
        scores = [expected_score(self(image)) for image in prepared.split(1)]
        return torch.cat(scores).to(images.device) if scores else images.new_zeros(0)

    @property
    def fingerprint(self) -> str:
        """Short hexadecimal digest of the architecture and the weights."""
        digest = hashlib.sha256(json.dumps(self._config(), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _config(self) -> dict[str, Any]:
        return {"class_name": type(self).__name__, "channels": list(self.channels)}

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors` to a directory, which is made if it does not exist."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self._config(), indent=2) + "\n", encoding="utf-8")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> NimaScorer:
        """Read what `save_pretrained` wrote to a directory or URL; the scorer is on the CPU, in eval mode.

        Raises:
            ModelError: files that are missing, of another class or shape, or not safetensors.
        """
        folder = node_copy(str(directory))
        config_file, weights_file = folder / "config.json", folder / "model.safetensors"
        for file in (config_file, weights_file):
            if not file.is_file():
                raise ModelError(
                    f"scorer {folder}: no {file.name}; give a directory written by NimaScorer.save_pretrained"
                )
        try:
            config = json.loads(config_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"scorer {config_file}: not JSON ({error})") from error
        if not isinstance(config, dict) or config.pop("class_name", None) != cls.__name__:
            raise ModelError(
                f"scorer {config_file}: class_name is not {cls.__name__}, the only class that scorer.path may hold"
            )
        try:
            model = cls(**config)
            model.load_state_dict(load_file(weights_file))
        except (TypeError, SafetensorError, RuntimeError) as error:
            reason = one_line(error, 300)
            raise ModelError(
                f"scorer {weights_file}: does not hold the weights that config.json describes: {reason}"
            ) from error
        return model.eval()


def expected_score(distribution: torch.Tensor) -> torch.Tensor:
    """Compute the (B,) mean scores in [1, 10] of (B, 10) probabilities."""
    return (distribution * _scores(distribution)).sum(1).clamp(1, BINS)


def score_distribution(mean: torch.Tensor, std: float) -> torch.Tensor:
    """Make labels for `emd_loss`: normal distributions of scores, cut to the ten bins.

    Args:
        mean: (B,) scores in [1, 10]; values outside are moved to the nearer end.
        std: standard deviation in scores, above 0.

    Returns:
        (B, 10) probabilities; bin k holds the mass of [k - 0.5, k + 0.5], and the bins are normalised to sum 1.
    """
    assert std > 0, "std must be positive"
    normal = torch.distributions.Normal(mean.clamp(1, BINS).unsqueeze(1), std)
    scores = _scores(mean)
    mass = normal.cdf(scores + 0.5) - normal.cdf(scores - 0.5)
    return mass / mass.sum(1, keepdim=True)


def emd_loss(predicted: torch.Tensor, target: torch.Tensor, r: float = 2) -> torch.Tensor:
    """Compute the earth mover's distance of NIMA's equation 1, averaged over the batch.

    It is (1/N * sum_k |CDF_predicted(k) - CDF_target(k)|^r)^(1/r), with r = 2 for training as in the paper.

    Args:
        predicted, target: (B, N) probabilities over ordered bins.
    """
    gap = (predicted.cumsum(1) - target.cumsum(1)).abs().pow(r).mean(1)
    return gap.clamp_min(1e-12).pow(1 / r).mean()  # the root's gradient is infinite at 0


def _scores(like: torch.Tensor) -> torch.Tensor:
    return torch.arange(1, BINS + 1, dtype=like.dtype, device=like.device)

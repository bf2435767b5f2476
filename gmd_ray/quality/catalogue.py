"""The metrics by name, and for each whether higher is better; torch and pyiqa take seconds and are not imported."""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmd_ray.errors import ConfigError, GmdError, nearest


class MetricUnavailable(GmdError):  # noqa: N818 (a state that a table reports, more than a mistake)
    """A known metric that cannot be loaded on this machine: a weight file or a package is missing."""


@dataclass(frozen=True)
class MetricInfo:
    """Properties of a metric that are known before it is loaded."""

    architecture: str
    """Name of pyiqa's class; empty for a formula that this package computes."""
    needs_reference: bool
    higher_is_better: bool
    per_image: bool = True
    """False if one image has no value: the metric compares sets of images, or needs a caption."""
    channels: str = "RGB"
    """The channels that are measured."""


Y_BT601 = "Y of BT.601 YCbCr"
OWN = {
    name: MetricInfo("", needs_reference=True, higher_is_better=True, channels=Y_BT601 if name[-2:] == "_y" else "RGB")
    for name in ("psnr", "psnr_y", "ssim", "ssim_y")
}
"""Metrics computed by `full_reference`, in the conventions of the restoration papers; these replace pyiqa's."""

OF_SETS = {"fid": MetricInfo("Inception", needs_reference=True, higher_is_better=False, per_image=False)}
"""Metrics of a whole test set, computed by `frechet`; they replace pyiqa's."""

PAPER = {
    "lpips": MetricInfo("LPIPS", needs_reference=True, higher_is_better=False),
    "dists": MetricInfo("DISTS", needs_reference=True, higher_is_better=False),
    "nima": MetricInfo("NIMA", needs_reference=False, higher_is_better=True),
    "musiq": MetricInfo("MUSIQ", needs_reference=False, higher_is_better=True),
    "niqe": MetricInfo("NIQE", needs_reference=False, higher_is_better=False, channels="Y of YIQ"),
    "brisque": MetricInfo("BRISQUE", needs_reference=False, higher_is_better=False, channels="Y of YIQ"),
    "clipiqa": MetricInfo("CLIPIQA", needs_reference=False, higher_is_better=True),
    "maniqa": MetricInfo("MANIQA", needs_reference=False, higher_is_better=True),
}
"""The paper's metrics and those of `scorer.fidelity`. Their names are known without pyiqa too, so that the error is a
missing package and not an unknown name."""

MIN_SIDE = {"niqe": 96, "niqe_matlab": 96, "ssim": 11, "ssim_y": 11}
"""Smallest side of an image in pixels: NIQE compares statistics of 96x96 blocks, SSIM those of windows of 11."""

RESIZES = {
    "fid": "resized to 299x299, bicubic with antialiasing (clean-fid)",
    "nima": "shorter side resized to 299, centre 299x299",
    "nima-vgg16-ava": "shorter side resized to 224, centre 224x224",
    "musiq": "whole image, and longer side resized to 384 and to 224",
    "maniqa": "20 crops of 224x224",
    "maniqa-pipal": "20 crops of 224x224",
}
"""Changes of an image's size before a metric looks at it; the others measure it as it is, or in a way that their names
say."""

NOT_PER_IMAGE = ("fid", "sfid", "fid_dinov2", "inception_score", "clipscore")


@functools.cache
def catalogue() -> dict[str, MetricInfo]:
    """Collect every metric: this package's own, and those of the installed pyiqa."""
    return {**PAPER, **_pyiqa_catalogue(), **OWN, **OF_SETS}


def known_metrics() -> dict[str, MetricInfo]:
    """Return the metrics that `load_metric` and `load_set_metric` know, sorted by name; takes milliseconds."""
    return dict(sorted(catalogue().items()))


def metric_info(name: str, setting: str) -> MetricInfo:
    """Look up a metric by name.

    Args:
        setting: the settings key that holds the name, for the error line.

    Raises:
        ConfigError: no such metric; the message names the nearest.
    """
    if name not in catalogue():
        raise ConfigError(f"{setting}: no metric {name!r}; {nearest(name, catalogue())}")
    return catalogue()[name]


def pyiqa_installed() -> bool:
    return importlib.util.find_spec("pyiqa") is not None


def _pyiqa_catalogue() -> dict[str, MetricInfo]:
    """Read pyiqa's table of metrics from its source file, because an import of the package takes many seconds."""
    spec = importlib.util.find_spec("pyiqa")
    if spec is None or not spec.submodule_search_locations:
        return {}
    source = Path(spec.submodule_search_locations[0]) / "default_model_configs.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        if [getattr(target, "id", None) for target in node.targets] == ["DEFAULT_CONFIGS"]:
            table = ast.literal_eval(node.value.args[0])
            return {
                name: MetricInfo(
                    architecture=entry["metric_opts"]["type"],
                    needs_reference=entry["metric_mode"] == "FR",
                    higher_is_better=not entry.get("lower_better", False),
                    per_image=name not in NOT_PER_IMAGE,
                    channels=_channels(entry["metric_opts"]),
                )
                for name, entry in table.items()
            }
    raise MetricUnavailable(f"{source}: pyiqa's table of metrics is not in the form of 0.1.16; install pyiqa==0.1.16")


def _channels(options: Mapping[str, Any]) -> str:
    space = str(options.get("color_space", "yiq"))
    return f"Y of {'BT.601 YCbCr' if space == 'ycbcr' else space.upper()}" if options.get("test_y_channel") else "RGB"


def metric_variant(name: str, crop_border: int = 0, align: str = "none") -> str:
    """The variant of a metric as a table names it: program, channels, border that is cut off, resize, alignment.

    Args:
        crop_border, align: `evaluation.crop_border` and `evaluation.align`.

    Raises:
        ConfigError: no such metric.
    """
    info = metric_info(name, "evaluation.metrics")
    parts = [info.channels]
    if name in OWN and name.startswith("ssim"):
        parts.append("11x11 Gaussian window, no downsampling")
    if info.needs_reference:
        parts.append(f"{crop_border} px border cut off" if crop_border else "no border cut off")
        if align == "ecc" and name not in OF_SETS:
            parts.append("output aligned to the ground truth (ECC homography, one factor of brightness)")
    if name in RESIZES:
        parts.append(RESIZES[name])
    if info.architecture:
        parts.append("weights of pytorch-fid" if name == "fid" else f"pyiqa's {name}")
    return ", ".join(parts)

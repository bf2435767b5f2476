"""Published values of metrics on five TID2013 pairs: whoever has the pictures and the weights can check his machine.

The pictures come from `../shared` and the weights from torch's hub directory, or from the directory that the variable
GMD_METRIC_WEIGHTS names; a metric without its weights is skipped by name. `psnr`, `ssim`, `niqe` and `brisque` have
tests of their own beside those of their formulas.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

from gmd_ray.quality import MetricUnavailable, compare_sets, load_metric, load_set_metric
from gmd_ray.quality.feature_sets import feature_set
from tests.quality.test_pyiqa_metrics import NAMES, read

FORMULAS = ("cw_ssim", "fsim", "gmsd", "ms_ssim", "vif", "vsi")
LEARNED = ("lpips", "dists", "musiq", "musiq-ava", "niqe_matlab", "brisque_matlab", "ilniqe", "nrqm", "pi", "paq2piq")
WEIGHTS = os.environ.get("GMD_METRIC_WEIGHTS")
CLEAN_FID = 220.5819
"""FID of the five distorted pictures against the five references, resized as in clean-fid."""


@pytest.fixture
def pictures(shared_data: Path) -> Path:
    folder = shared_data / "metric_calibration"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.mark.parametrize("name", [*FORMULAS, *LEARNED])
def test_published_values(name: str, pictures: Path) -> None:
    pytest.importorskip("pyiqa")
    with (pictures / "calibration_summary.csv").open() as file:
        published = {row["Method"]: row for row in csv.DictReader(file)}[f"{name}(ours)"]
    try:
        metric = load_metric(name, directory=WEIGHTS, device="cpu")
    except MetricUnavailable as error:
        pytest.skip(str(error))
    for picture in NAMES:
        image, reference = (read(pictures / side / f"{picture}.bmp") for side in ("dist_dir", "ref_dir"))
        value = metric(image, reference if metric.needs_reference else None)
        assert value == pytest.approx(float(published[f"{picture}.bmp"]), rel=2e-3, abs=2e-3)


def test_published_fid(pictures: Path) -> None:
    try:
        metric = load_set_metric("fid", directory=WEIGHTS, device="cpu")
    except MetricUnavailable as error:
        pytest.skip(str(error))
    assert metric is not None
    sets = []
    for side in ("dist_dir", "ref_dir"):
        images: list[torch.Tensor] = [read(pictures / side / f"{picture}.bmp") for picture in NAMES]
        sets.append(feature_set([metric.features(image) for image in images]))
    assert compare_sets("fid", *sets) == pytest.approx(CLEAN_FID, rel=1e-3)

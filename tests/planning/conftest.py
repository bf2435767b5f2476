"""Small folders and settings for preflights; the models are the toy world's own, in their real layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.quality import known_metrics
from gmd_ray.ray_utils.session import cluster_address
from tests.generation.conftest import finished, fresh, world

__all__ = ["finished", "fresh", "world"]

_WEIGHTS = Path(gmd_ray.__file__).parent / "demo" / "toy" / "weights"
STUDENT, TEACHER, SCORER = str(_WEIGHTS / "student.safetensors"), str(_WEIGHTS / "teacher"), str(_WEIGHTS / "scorer")
"""The student enlarges by 1."""

FLUX_DEV = {
    "in_channels": 64, "out_channels": None, "patch_size": 1, "num_layers": 19, "num_single_layers": 38,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": True,
}  # fmt: skip


def write_flux(folder: Path) -> Path:
    """FLUX.1-dev's config files."""
    for part, config in {"transformer": FLUX_DEV, "vae": {"block_out_channels": [128, 256, 512, 512]}}.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def no_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the tests may have a Ray session of other tests, which a run would take for its cluster."""
    monkeypatch.setattr("gmd_ray.ready.joins_cluster", lambda cfg: cluster_address(cfg) is not None)


def picture(path: Path, height: int = 32, width: int = 48, **options: Any) -> Path:
    """A smooth picture of its own for each name, in the format that its ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = sample_rng("planning", path.parent.name, path.name).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(path, **options)
    return path


def pairs(root: Path, name: str, scale: int = 1, count: int = 4, size: tuple[int, int] = (32, 48)) -> tuple[Path, Path]:
    """Folders `<name>_hq` and `<name>_lq`."""
    hq, lq = root / f"{name}_hq", root / f"{name}_lq"
    for i in range(count):
        picture(hq / f"{i}.png", size[0] * scale, size[1] * scale)
        picture(lq / f"{i}.png", *size)
    return hq, lq


def tear(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def settings(root: Path, *more: str) -> list[str]:
    """Settings of a run in `<root>/run` over four target photos and four pairs of each kind, all of them intact."""
    source, tests = pairs(root, "source"), pairs(root, "source_test", count=2)
    target = pairs(root, "target_test", count=2)
    for i in range(4):
        picture(root / "photos" / f"{i}.jpg")
    return [
        f"out={root / 'run'}",
        f"student.path={STUDENT}", f"teacher.path={TEACHER}", "teacher.prompt=hq", f"scorer.path={SCORER}",
        f"target.path={root / 'photos'}",
        f"source.hq={source[0]}", f"source.lq={source[1]}",
        f"evaluation.target_hq={target[0]}", f"evaluation.target_lq={target[1]}",
        f"evaluation.source_hq={tests[0]}", f"evaluation.source_lq={tests[1]}",
        "evaluation.metrics=[psnr,ssim]", "training.patch=16", *more,
    ]  # fmt: skip


def config(root: Path, *more: str) -> Config:
    return load_config(settings(root, *more), known_metrics=known_metrics)


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    return write_flux(tmp_path / "flux")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three of 720x1280 and one of 512x512, headers of PNG alone; one that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(1280, 720)] * 3 + [(512, 512)]):
        Image.fromarray(np.zeros((*size[::-1], 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes()[:100])
    (folder / "broken.png").write_text("no")
    return folder


@pytest.fixture
def cfg(tmp_path: Path, flux: Path, photos: Path) -> Config:
    cfg = Config(out=str(tmp_path / "run"))
    cfg.target.path, cfg.teacher.path, cfg.plan.scale = str(photos), str(flux), 1
    return cfg

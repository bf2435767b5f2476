from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.DnCNN import DnCNN

from gmd_ray.config import Config
from gmd_ray.demo.toy import world
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.images.files.encode import encode_png
from gmd_ray.pairstore.schema import PAIR_SCHEMA

SIDE = 32


def save_student(path: Path, seed: int, strength: float) -> str:
    """A small DnCNN; `strength` scales what it subtracts, so 0 is the identity."""
    torch.manual_seed(seed)
    network = DnCNN(in_nc=3, out_nc=3, nc=8, nb=9, act_mode="R")
    weights = {key: value.detach().clone() for key, value in network.state_dict().items()}
    for value in list(weights.values())[-2:]:
        value *= strength
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(path))
    return str(path)


def draw(folder: Path, lq: str, hq: str, count: int, names: str = "{:02d}.png") -> None:
    """Pairs of the toy world as files."""
    for i in range(count):
        clean = world.draw(7, folder.name, i, SIDE)
        for name, image in ((lq, world.TARGET(clean, sample_rng(folder.name, i))), (hq, clean)):
            path = folder / name / names.format(i)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))


def write_store(
    out: Path,
    scores: Sequence[float | None],
    names: str = "{:02d}.png",
    fidelity: Sequence[float] = (),
    uri: str = "/photos/{}",
    digests: Sequence[str] = (),
) -> None:
    """A pair store with a row for each score; None is a failed row.

    `fidelity` is the PSNR to `restored` and `digests` those of the photos, of every row or of none.
    """
    rows = []
    for i, score in enumerate(scores):
        row = {"id": names.format(i), "uri": uri.format(i), "status": "ok" if score is not None else "failed"}
        if score is None:
            row |= {"error_stage": "read", "error_type": "DataError", "error": "empty file"}
        else:
            clean = world.draw(7, "store", i, SIDE)
            images = {"lq": np.clip(clean + 0.1, 0, 1), "restored": np.clip(clean + 0.05, 0, 1), "pseudo_target": clean}
            row |= {key: encode_png(image) for key, image in images.items()} | {"score": score}
            row |= {"width": SIDE, "height": SIDE, "teacher": "t0", "student": "s0", "scorer": "n0"}
        row |= {"digest": digests[i]} if digests else {}
        rows.append(row | ({"fidelity": fidelity[i]} if fidelity else {}))
    (out / "pairs" / "rows").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=PAIR_SCHEMA), out / "pairs" / "rows" / "part-0.parquet")
    manifest = {"inputs": len(scores), "seconds": 12.0, "higher_is_better": True, "threshold": 4.2}
    manifest["settings"] = {"scorer.fidelity": "psnr" if fidelity else "none"}
    (out / "pairs" / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def students(tmp_path: Path) -> dict[str, str]:
    return {
        "baseline": save_student(tmp_path / "baseline.safetensors", 0, 0.3),
        "adapted": save_student(tmp_path / "adapted.safetensors", 1, 0.1),
    }


@pytest.fixture
def run(tmp_path: Path, students: dict[str, str]) -> Config:
    """A run with a target and a source test set of six and four images."""
    draw(tmp_path / "target", "lq", "hq", 6)
    draw(tmp_path / "source", "lq", "hq", 4)
    cfg = Config(out=str(tmp_path / "out"))
    cfg.student.path = students["baseline"]
    e = cfg.evaluation
    e.target_lq, e.target_hq = str(tmp_path / "target" / "lq"), str(tmp_path / "target" / "hq")
    e.source_hq, e.source_lq = str(tmp_path / "source" / "hq"), str(tmp_path / "source" / "lq")
    e.metrics, e.report_images, e.pool.batch_size, e.device = ["psnr", "ssim"], 3, 4, "cpu"
    return cfg

"""A tiny student, source folders and pair stores to train on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gmd_ray.config import Config, ScorerConfig, SourceConfig, StudentConfig, TrainingConfig
from gmd_ray.images.files.encode import encode_png
from gmd_ray.pairstore.schema import PAIR_SCHEMA
from gmd_ray.progress import NullRecorder

LONG = {"steps": 400, "checkpoint_every": 20, "log_every": 10, "batch_size": 8, "patch": 16, "lr": 2e-5, "loss": "l2"}
"""Some seconds of training: time to be killed in. Smooth and slow, so that sums in another order stay close: with L1 at
lr 1e-4, one process that adds two half batches and one that takes them whole are 5e-3 apart after these steps."""


def picture(key: int, height: int = 24, width: int = 20) -> np.ndarray:
    """A smooth random image on the 8-bit grid, float32 RGB (height, width, 3)."""
    rng = np.random.default_rng(key)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(rows * a + columns * b + c) for a, b, c in rng.uniform(0.05, 0.6, (3, 3))]
    return np.rint((np.stack(waves, axis=2) * 0.4 + 0.5) * 255).astype(np.float32) / 255


def noisy(image: np.ndarray, key: int) -> np.ndarray:
    """The image with noise, on the 8-bit grid."""
    noise = np.random.default_rng((1, key)).normal(0, 0.1, image.shape)
    return np.rint(np.clip(image + noise, 0, 1) * 255).astype(np.float32) / 255


def write_source(folder: Path, n: int = 6) -> None:
    """`hq/` and `lq/` with n pairs of unequal sizes."""
    for side in ("hq", "lq"):
        (folder / side).mkdir(parents=True)
    for i in range(n):
        clean = picture(i, 18 + 3 * (i % 3))
        (folder / "hq" / f"{i}.png").write_bytes(encode_png(clean))
        (folder / "lq" / f"{i}.png").write_bytes(encode_png(noisy(clean, i)))


def pair_row(i: int, **changes: Any) -> dict[str, Any]:
    """An ok row with score i."""
    clean = picture(100 + i)
    row = {
        "id": f"{i:03d}.png",
        "uri": f"/photos/{i:03d}.png",
        "status": "ok",
        "lq": encode_png(noisy(clean, 100 + i)),
        "restored": encode_png(noisy(clean, 200 + i)),
        "pseudo_target": encode_png(clean),
        "width": clean.shape[1],
        "height": clean.shape[0],
        "score": float(i),
        "teacher": "t",
        "student": "s",
        "scorer": "n",
        "attempts": 1,
    }
    return row | changes


def write_store(store: Path, rows: list[dict[str, Any]], per_part: int = 3) -> None:
    """Rows of PAIR_SCHEMA, last ones first, in several parts; and a manifest."""
    (store / "rows").mkdir(parents=True, exist_ok=True)
    rows = rows[::-1]
    for number, start in enumerate(range(0, len(rows), per_part)):
        table = pa.Table.from_pylist(rows[start : start + per_part], schema=PAIR_SCHEMA)
        pq.write_table(table, store / "rows" / f"part-{number}.parquet")
    (store / "manifest.json").write_text(json.dumps({"inputs": len(rows), "higher_is_better": True}))


def write_student(path: Path, seed: int = 0) -> None:
    """A DnCNN of spandrel's class, without batch norm."""
    from spandrel.architectures.DnCNN import DnCNN

    torch.manual_seed(seed)
    torch.save(DnCNN(in_nc=3, out_nc=3, nc=8, nb=8, act_mode="R").state_dict(), path)


def make_config(folder: Path, **training: Any) -> Config:
    """A run in `folder`: 6 source pairs, 9 rows of which 7 are accepted at the threshold, a tiny student."""
    if not (folder / "student.pth").exists():
        write_source(folder / "source")
        rows = [pair_row(i) for i in range(9)]
        rows[8] |= {"status": "failed", "score": 8.0, "pseudo_target": None}
        write_store(folder / "run" / "pairs", rows)
        write_student(folder / "student.pth")
    settings = {
        "steps": 12,
        "batch_size": 4,
        "source_ratio": 0.6,
        "patch": 12,
        "lr": 1e-3,
        "warmup_steps": 2,
        "ema": 0.9,
        "checkpoint_every": 4,
        "log_every": 2,
        "cpus_per_worker": 0.5,
    }
    return Config(
        out=str(folder / "run"),
        log_interval_s=0.5,
        source=SourceConfig(hq=str(folder / "source" / "hq"), lq=str(folder / "source" / "lq")),
        student=StudentConfig(path=str(folder / "student.pth")),
        scorer=ScorerConfig(threshold=1.0),
        training=TrainingConfig(**(settings | training)),
    )


class FileRecorder(NullRecorder):
    """Keeps metrics and parameters as lines of a file; pickles."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """The metrics, in the order they came."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]

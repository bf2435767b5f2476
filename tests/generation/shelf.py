"""Finished pair stores made by hand, on any filesystem; no Ray, no models."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gmd_ray.hashing import content_digest
from gmd_ray.images.degradation.degradations import sample_rng
from gmd_ray.images.files.encode import encode_png
from gmd_ray.images.listing import ImageFile, read_file
from gmd_ray.pairstore.parts import write_part
from gmd_ray.pairstore.schema import PAIR_SCHEMA, FidelityBound, accepted
from gmd_ray.pairstore.store import PairStore
from gmd_ray.storage import put


def png(*size: int, seed: str = "") -> bytes:
    """Noise of (height, width)."""
    return encode_png(sample_rng("shelf", seed, *size).random((*size, 3), dtype=np.float32))


def ok_row(key: str, score: float, **values: Any) -> dict[str, Any]:
    images = {name: png(12, 16, seed=f"{key}{name}") for name in ("restored", "pseudo_target")}
    row = {"id": key, "uri": f"/photos/{key}", "status": "ok", "lq": png(6, 8, seed=key), **images}
    row |= {"width": 16, "height": 12, "score": score, "student": "s", "teacher": "t", "scorer": "n", "attempts": 1}
    return row | {f"seconds_{stage}": 1.0 for stage in ("restore", "project", "score")} | values


def failed_row(key: str, stage: str = "read", kind: str = "DataError") -> dict[str, Any]:
    return {"id": key, "status": "failed", "error_stage": stage, "error_type": kind, "error": "why", "attempts": 1}


def file_columns(file: ImageFile) -> dict[str, Any]:
    """Columns of a row that describe the file it was made of."""
    data = read_file(file.uri)
    return {"bytes": len(data), "modified": file.modified, "digest": content_digest(data)}


def fill(store: PairStore, blocks: list[list[dict[str, Any]]]) -> list[str]:
    """Part files; returns their names."""
    return [write_part(store.filesystem, store.rows_path, pa.Table.from_pylist(b, schema=PAIR_SCHEMA)) for b in blocks]


def finish(
    store: PairStore,
    rows: list[dict[str, Any]],
    *,
    photos: Path | None = None,
    threshold: float = 5.0,
    higher: bool = True,
    fidelity: str = "none",
    bound: float | None = None,
    metric: str = "nima",
) -> None:
    """settings.json and manifest.json that say what the rows say."""
    table = pa.Table.from_pylist(rows, schema=PAIR_SCHEMA)
    view = accepted(threshold, higher, (), None if bound is None else FidelityBound(fidelity, bound))
    ok = sum(row["status"] == "ok" for row in rows)
    taken = table.filter(view).num_rows
    used = {"scorer.metric": metric, "scorer.fidelity": fidelity}
    store.write(
        "settings.json",
        {
            "settings": used,
            "places": {"target.path": {"path": str(photos)}} if photos else {},
            "models": {"scorer": {"fingerprint": "n", "higher_is_better": higher}},
            "inputs": {"count": len(rows), "limit": None},
        },
    )
    counts = {"inputs": len(rows), "accepted": taken, "rejected": ok - taken, "failed": len(rows) - ok}
    extra = {"threshold": threshold, "higher_is_better": higher, "fidelity_bound": bound, "stranger_ids": []}
    store.write("manifest.json", {**counts, **extra, "settings": used, "images_per_second": 2.0})


def lock(store: PairStore, *, since: float = 0.0, beat: float = 0.0, pid: int | None = None) -> None:
    """A lock as a driver on this machine leaves it, by default one that lives; `since` and `beat` are seconds ago."""
    now = time.time()
    holder = {"token": "x", "host": socket.gethostname(), "pid": str(pid or os.getppid())}
    holder |= {"since": f"{now - since:.3f}", "beat": f"{now - beat:.3f}"}
    put(store.filesystem, f"{store.path}/lock.json", json.dumps(holder).encode())

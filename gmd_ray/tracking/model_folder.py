"""The folder of a registered version: an MLflow model without pickle, the values by image, the pairs, a model card.

The plain checkpoint lies in it under its own name, byte for byte as the fine-tune wrote it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import gmd_ray
from gmd_ray.config import Config
from gmd_ray.config.secrets import redact
from gmd_ray.pairstore.manifest import read_manifest
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.pairstore.view import StoreView
from gmd_ray.text import printable
from gmd_ray.tracking.promotion import CANDIDATE, gain_words

LOADER = "gmd_ray.students.served"
"""Module with the `_load_pyfunc` that MLflow calls."""
if TYPE_CHECKING:
    from gmd_ray.evaluation import Evaluation

EXTRAS = "about"
"""Folder within a version for what `gmd_ray` itself reads: `student.json`, `pairs.parquet`, `evaluation/`."""
FACTS_FILE, PAIRS_FILE = f"{EXTRAS}/student.json", f"{EXTRAS}/pairs.parquet"
STUDENT_SETTINGS = ("factory", "tile", "tile_overlap", "sampling_steps", "dtype")
_LIBRARIES = ("torch", "torchvision", "spandrel", "safetensors", "diffusers", "numpy", "opencv-python-headless")
_PAIR_COLUMNS = ["id", "uri", "digest", "status", "score", "fidelity", "teacher", "student", "scorer"]


def write_model_folder(folder: Path, cfg: Config, file: str, evaluation: Evaluation, tags: Mapping[str, str]) -> None:
    """Write all files of a version but the checkpoint itself, which may be large and is sent from where it lies.

    Args:
        folder: a folder that does not exist yet.
        cfg: the settings of the run.
        file: name of the checkpoint's file or directory.
        evaluation: the values that the gates judge.
        tags: the tags of the version.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import Schema, TensorSpec

    from gmd_ray.evaluation.results import PICTURES

    # Warnings about pip, and that the example fits the signature, tell the user nothing.
    for name in ("mlflow.pyfunc", "mlflow.utils.environment"):
        logging.getLogger(name).setLevel(logging.ERROR)
    images = TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))
    save_model(
        str(folder),
        loader_module=LOADER,
        signature=ModelSignature(Schema([images]), Schema([images])),
        input_example=_example(),
        pip_requirements=_requirements(),
        metadata={"gmd_ray": gmd_ray.__version__, "sha256": tags.get("sha256", "")},
    )
    (folder / "README.md").write_text(model_card(cfg, evaluation, tags))
    (folder / EXTRAS).mkdir()
    settings = {name: getattr(cfg.student, name) for name in STUDENT_SETTINGS}
    (folder / FACTS_FILE).write_text(json.dumps({"file": file, "settings": settings}, indent=2))
    replace(evaluation, pictures=PICTURES.empty_table()).save(str(folder / EXTRAS))
    pairs = _pairs(cfg)
    if pairs is not None:
        pq.write_table(pairs, folder / PAIRS_FILE, compression="zstd")


def model_card(cfg: Config, evaluation: Evaluation, tags: Mapping[str, str]) -> str:
    """The model card in Markdown: how to use it, data, figures with intervals, teacher and licence, limits."""
    from gmd_ray.evaluation.summaries.verdict import sentences
    from gmd_ray.evaluation.table import variant_notes

    name, teacher = cfg.tracking.model, redact(str(cfg.teacher.path))
    licence = f"{tags.get('teacher.licence', 'unknown')} ({tags.get('teacher.licence_source', 'not known')})"
    counts = ", ".join(f"{tags[key]} {key[6:]}" for key in _COUNTS if key in tags) or "no pair store beside the run"
    sets = {
        "target": f"{redact(str(cfg.evaluation.target_lq))}",
        "source": f"{redact(str(cfg.evaluation.source_hq))}",
    }
    tested = "\n".join(
        f"- {dataset}: {len(evaluation.images(dataset))} images of `{sets[dataset]}`, digest "
        f"`{evaluation.test_set(dataset)}`"
        for dataset in evaluation.datasets
    )
    lines = [
        f"# {name}: a student adapted by gmd_ray {gmd_ray.__version__}",
        "",
        f"`{redact(str(cfg.student.path))}`, fine-tuned on source pairs and on photos whose targets a teacher has made "
        "(Generative Manifold Distillation).",
        "",
        "## Use",
        "Images are RGB, uint8, of shape (B, H, W, 3); the result has the sides times the student's scale.",
        "",
        "```python",
        f'restored = mlflow.pyfunc.load_model("models:/{name}@champion").predict(images)',
        "```",
        "",
        f'Folders of photos: `gmd-ray restore -m "models:/{name}@champion" -i IN -o OUT`. The plain checkpoint is the '
        f"file `{tags.get('file', '')}` of this version (sha256 `{tags.get('sha256', '')}`), in "
        "the layout of the one it was made from.",
        "",
        "## Data",
        f"- source: `{redact(str(cfg.source.hq))}`, degradation `{cfg.source.degradation}`",
        f"- target: photos of `{redact(str(cfg.target.path))}`; pairs: {counts}",
        "",
        "Each pair, with the digest of its photo, is a row of `about/pairs.parquet`.",
        "",
        "## Teacher and licence",
        f"- teacher: `{teacher}`, licence: {licence}",
        "- The licence of the student that was adapted applies as well, and the rights in the photos.",
        "",
        "## Figures",
        " ".join(sentences(evaluation)),
        "",
        tested,
        "",
        *_figure_table(evaluation),
        "",
        "Intervals are 95 % bootstrap intervals over images, and words hold after Holm's correction for all methods "
        "and metrics of a test set. The values by image lie in `about/evaluation/`.",
        "",
        *(f"- {line}" for line in variant_notes(evaluation, _figures(evaluation))),
        "",
        "## Limits",
        "- It is adapted to photos like those of the target; elsewhere the figures do not speak for it.",
        "- A restorer invents detail that the photo does not hold. It is no evidence of what was there.",
        "- The teacher's habits (texture, colour, faces) are part of what it has learned.",
    ]
    return "\n".join(lines) + "\n"


_COUNTS = ("pairs.inputs", "pairs.accepted", "pairs.rejected", "pairs.failed")


def _figures(evaluation: Evaluation) -> list[str]:
    """The metrics that have a value of the adapted student on any test set."""
    sets = evaluation.datasets
    return [name for name in evaluation.metrics if any(evaluation.values(CANDIDATE, each, name) for each in sets)]


def _figure_table(evaluation: Evaluation) -> list[str]:
    """A row for each test set and metric; the ground truth has a column if it has a value of a no-reference metric."""
    from gmd_ray.evaluation.results import TRUTH, UNTOUCHED
    from gmd_ray.evaluation.table import label

    metrics = _figures(evaluation)
    truth = any(evaluation.truth(dataset, metric) for dataset in evaluation.datasets for metric in metrics)
    methods = [UNTOUCHED, "baseline", CANDIDATE, *([TRUTH] if truth else [])]
    heads = ["test set", "metric", *map(label, methods), "gain over the baseline"]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for dataset in evaluation.datasets:
        for metric in metrics:
            if not evaluation.values(CANDIDATE, dataset, metric):
                continue
            means = [evaluation.mean(method, dataset, metric) for method in methods]
            pairs = evaluation.difference(CANDIDATE, dataset, metric)
            # In MLflow's page, brackets followed by parentheses are a link.
            gain = "" if pairs is None else f"{gain_words(pairs)}, n={pairs.n}, {pairs.phrase}"
            cells = [dataset, printable(metric), *("" if mean is None else f"{mean:.4g}" for mean in means), gain]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _pairs(cfg: Config) -> pa.Table | None:
    """The rows of the pair store without their images, and whether each was accepted; None without a store."""
    store = PairStore(store_url(cfg.out))
    if read_manifest(store) is None:
        return None
    view = StoreView.open(store, cfg.scorer.threshold, cfg.scorer.fidelity_bound, fidelity=cfg.scorer.fidelity)
    rows = view.read(_PAIR_COLUMNS, pc.field("id").is_valid()).sort_by("id")
    accepted = pc.is_in(rows["id"], pa.array(view.ids(), pa.string()))
    return rows.append_column("accepted", accepted).replace_schema_metadata({"store": redact(store.url)})


def _example() -> np.ndarray:
    """A batch of one small image, uint8 (1, 32, 32, 3): two ramps."""
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    down, right = np.meshgrid(ramp, ramp, indexing="ij")
    return np.stack([down, right, down[::-1]], axis=-1)[None]


def _requirements() -> list[str]:
    """The packages that loading takes, with their installed versions."""
    found = [f"gmd_ray=={gmd_ray.__version__}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return found

"""The outcome of a run on its parent run in MLflow: gains that one can sort by, and the data sets behind them."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gmd_ray.config import Config
from gmd_ray.config.places import below
from gmd_ray.pairstore.manifest import read_manifest
from gmd_ray.pairstore.schema import rows_dataset
from gmd_ray.pairstore.store import PairStore, store_url
from gmd_ray.progress import NullRecorder
from gmd_ray.storage import read_bytes
from gmd_ray.tracking.promotion import CANDIDATE
from gmd_ray.tracking.recorder import MlflowRecorder, RunDataset

if TYPE_CHECKING:
    from gmd_ray.evaluation import Evaluation


def record_outcome(cfg: Config, recorder: MlflowRecorder | NullRecorder, evaluation: Evaluation) -> None:
    """Give the gains of the adapted student over the baseline, and the dataset inputs, to the run of `recorder`.

    Metrics are `gain/<test set>/<metric>`, positive where the adapted student is better, with `/low` and `/high` for
    the 95 % interval and `/n` for the number of images. Inputs are the pair store and the source set (`training`), and
    the test sets (`test`).
    """
    if not isinstance(recorder, MlflowRecorder):
        return
    recorder.metrics(gains(evaluation))
    recorder.datasets([*_training_sets(cfg), *_test_sets(cfg, evaluation)])


def gains(evaluation: Evaluation) -> dict[str, float]:
    """The gains of the adapted student over the baseline, as `record_outcome` names them."""
    found: dict[str, float] = {}
    for dataset in evaluation.datasets:
        for metric in evaluation.metrics:
            pairs = evaluation.difference(CANDIDATE, dataset, metric)
            if pairs is None:
                continue
            key = f"gain/{dataset}/{metric}"
            found |= {key: pairs.gain, f"{key}/n": float(pairs.n)}
            if pairs.low is not None and pairs.high is not None:
                low, high = (-pairs.high, -pairs.low) if pairs.lower_is_better else (pairs.low, pairs.high)
                found |= {f"{key}/low": low, f"{key}/high": high}
    return found


def _training_sets(cfg: Config) -> list[RunDataset]:
    """The pair store by the values of its rows, and the source set by the digests that the fine-tune has kept."""
    found = []
    store = PairStore(store_url(cfg.out))
    if read_manifest(store) is not None:
        columns = ["id", "digest", "status", "score"]
        rows = rows_dataset(store.path, store.filesystem).to_table(columns=columns).sort_by("id")
        counts = Counter(rows["status"].to_pylist())
        profile = {"rows": len(rows), **counts, "scored": len(rows.filter(pc.field("score").is_valid()))}
        found.append(RunDataset("pairs", _digest(rows), "training", store.url, profile))
    record = read_bytes(below(cfg.out, f"finetune/{CANDIDATE}/sources.parquet"))
    if record is not None and cfg.source.hq is not None:
        rows = pq.read_table(io.BytesIO(record), columns=["key", "digest"]).sort_by("key")
        found.append(RunDataset("source", _digest(rows), "training", cfg.source.hq, {"files": len(rows)}))
    return found


def _digest(rows: pa.Table) -> str:
    """Digest of all values of a table, row after row."""
    digest = hashlib.sha256()
    for values in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        digest.update(f"{values}\n".encode())
    return digest.hexdigest()


def _test_sets(cfg: Config, evaluation: Evaluation) -> list[RunDataset]:
    places = {"target": cfg.evaluation.target_lq, "source": cfg.evaluation.source_hq}
    return [
        RunDataset(
            f"test {dataset}",
            evaluation.test_set(dataset),
            "test",
            str(places.get(dataset)),
            {"images": len(evaluation.images(dataset)), "contents": evaluation.contents.get(dataset, "")},
        )
        for dataset in evaluation.datasets
    ]

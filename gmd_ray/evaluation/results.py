"""What an evaluation found: a row for every image, student and metric, and the figures drawn from them."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gmd_ray.errors import DataError
from gmd_ray.evaluation.files import read_bytes, write_bytes

NO_TRUTH = "needs ground truth, which this test set lacks"
"""`error` in rows of a full-reference metric on images without a reference."""

ROWS = pa.schema(
    [
        ("dataset", pa.string()),
        ("id", pa.string()),
        ("student", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("error", pa.string()),
        ("higher_is_better", pa.bool_()),
    ]
)
"""`value` is null where `error` says why, `higher_is_better` where the metric could not be loaded; `id` may be
`WHOLE_SET`."""

PICTURES = pa.schema([("dataset", pa.string()), ("id", pa.string()), ("name", pa.string()), ("png", pa.binary())])
"""PNGs for the report; `name` is a student, `lq`, `hq`, `restored` or `pseudo_target`."""

UNAVAILABLE = "unavailable: "
"""How `error` begins in rows of a metric that could not be loaded."""

WHOLE_SET = ""
"""`id` of a row whose value is of a whole test set, as FID's is."""


@dataclass(frozen=True)
class InferenceCost:
    """What a student takes on a test set."""

    parameters: int | None
    """Of the network; None where the teacher works behind it."""
    seconds: float
    """Median over the images, one after the other, as the evaluation ran them."""
    device: str
    """Where most of them were run."""


@dataclass(frozen=True)
class Difference:
    """A student minus a reference, image by image over the images that have both values."""

    mean: float
    standard_error: float | None
    """Of the mean over images: sample standard deviation / sqrt(n); None for a single image."""
    n: int
    only_reference: int
    """Images on which the reference has a value and the student has none."""


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> Difference | None:
    """`ours` minus `theirs`, image by image; None where no image has both."""
    gaps = [ours[image] - theirs[image] for image in sorted(ours.keys() & theirs.keys())]
    if not gaps:
        return None
    n = len(gaps)
    mean = math.fsum(gaps) / n
    error = math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (n - 1) / n) if n > 1 else None
    return Difference(mean, error, n, len(theirs.keys() - ours.keys()))


@dataclass(frozen=True)
class Evaluation:
    """The rows of an evaluation and the pictures kept for the report."""

    rows: pa.Table
    """Schema `ROWS`."""
    pictures: pa.Table
    """Schema `PICTURES`."""
    students: tuple[str, ...]
    """In the order given to `evaluate`, `lq` first where it is a row."""
    metrics: tuple[str, ...]
    """As configured, available or not."""
    settings: str
    """What besides the images decides the values, e.g. the crop border; part of `test_set`."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Test set -> digest of its pictures and of what degrades them; part of `test_set`."""
    costs: Mapping[str, Mapping[str, InferenceCost]] = field(default_factory=dict)
    """Test set -> student -> cost."""

    @cached_property
    def _values(self) -> dict[tuple[str, str, str], dict[str, float]]:
        values: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in self.rows.to_pylist():
            if row["value"] is not None:
                values.setdefault((row["student"], row["dataset"], row["metric"]), {})[row["id"]] = row["value"]
        return values

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """`target` and `source`, those that were evaluated."""
        present = set(self.rows["dataset"].unique().to_pylist())
        return tuple(name for name in ("target", "source") if name in present)

    @cached_property
    def unavailable(self) -> dict[str, str]:
        """Metrics that could not be loaded, and why."""
        return {
            row["metric"]: row["error"].removeprefix(UNAVAILABLE)
            for row in self.rows.to_pylist()
            if row["error"] and row["error"].startswith(UNAVAILABLE)
        }

    @cached_property
    def directions(self) -> dict[str, bool]:
        """Metric -> whether higher is better; unavailable metrics are missing."""
        pairs = zip(self.rows["metric"].to_pylist(), self.rows["higher_is_better"].to_pylist(), strict=True)
        return {metric: higher for metric, higher in pairs if higher is not None}

    def lacking(self, dataset: str) -> tuple[str, ...]:
        """Metrics that need ground truth, on a test set that has none."""
        return tuple(metric for metric in self.metrics if (dataset, metric) in self._without_truth)

    @cached_property
    def _without_truth(self) -> set[tuple[str, str]]:
        rows = self.rows.filter(pc.equal(self.rows["error"], NO_TRUTH))
        return set(zip(rows["dataset"].to_pylist(), rows["metric"].to_pylist(), strict=True))

    def why_missing(self, dataset: str, metric: str) -> str:
        """Why a metric has no value on a test set."""
        no_truth = NO_TRUTH if metric in self.lacking(dataset) else "it was not measured"
        return self.unavailable.get(metric, no_truth)

    def values(self, student: str, dataset: str, metric: str) -> dict[str, float]:
        """Image id -> value, without the images that failed."""
        return self._values.get((student, dataset, metric), {})

    def images(self, dataset: str) -> list[str]:
        """The ids of a test set, failed ones included, sorted."""
        pairs = zip(self.rows["dataset"].to_pylist(), self.rows["id"].to_pylist(), strict=True)
        return sorted({image for name, image in pairs if name == dataset and image != WHOLE_SET})

    def mean(self, student: str, dataset: str, metric: str) -> float | None:
        """Mean over the images that have a value; None where none has."""
        values = self.values(student, dataset, metric)
        return math.fsum(values.values()) / len(values) if values else None

    def difference(self, student: str, dataset: str, metric: str, against: str = "baseline") -> Difference | None:
        """`student` minus `against`, paired by image; None where no image has both."""
        return paired(self.values(student, dataset, metric), self.values(against, dataset, metric))

    def failures(self, dataset: str) -> list[tuple[str, str, str, int]]:
        """(student, metric, reason, images) of missing values, without metrics that are unavailable here."""
        counts = Counter(
            (row["student"], row["metric"], row["error"])
            for row in self.rows.to_pylist()
            if row["dataset"] == dataset and row["error"] and not row["error"].startswith((UNAVAILABLE, NO_TRUTH))
        )
        return [(*key, n) for key, n in sorted(counts.items())]

    def test_set(self, dataset: str) -> str:
        """A short digest of what was measured: ids and pictures of the images, and settings.

        Means are comparable only where it is equal.
        """
        text = "\n".join([self.settings, self.contents.get(dataset, ""), *self.images(dataset)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def picture(self, dataset: str, image: str, name: str) -> bytes | None:
        """A kept PNG."""
        return self._pictures.get((dataset, image, name))

    def pictured(self, dataset: str) -> list[str]:
        """Ids of a data set that pictures were kept of, in order."""
        return list(dict.fromkeys(image for name, image, _ in self._pictures if name == dataset))

    @cached_property
    def _pictures(self) -> dict[tuple[str, str, str], bytes]:
        return {(row["dataset"], row["id"], row["name"]): row["png"] for row in self.pictures.to_pylist()}

    def save(self, out: str) -> None:
        """Write `metrics.parquet` and `pictures.parquet` below `<out>/evaluation`."""
        costs = {name: {key: asdict(cost) for key, cost in line.items()} for name, line in self.costs.items()}
        about = {
            "students": list(self.students),
            "metrics": list(self.metrics),
            "settings": self.settings,
            "contents": dict(self.contents),
            "costs": costs,
        }
        rows = self.rows.replace_schema_metadata({"gmd_ray": json.dumps(about)})
        for name, table in (("metrics", rows), ("pictures", self.pictures)):
            sink = io.BytesIO()
            pq.write_table(table, sink)
            write_bytes(f"{evaluation_folder(out)}/{name}.parquet", sink.getvalue())


def load_evaluation(out: str) -> Evaluation:
    """The evaluation that an earlier run left under `out`.

    Raises:
        DataError: there is none.
    """
    tables = []
    for name in ("metrics", "pictures"):
        data = read_bytes(f"{evaluation_folder(out)}/{name}.parquet")
        if data is None:
            raise DataError(f"{evaluation_folder(out)}/{name}.parquet: no such file; evaluate this run first")
        tables.append(pq.read_table(io.BytesIO(data)))
    rows, pictures = tables
    about = json.loads((rows.schema.metadata or {})[b"gmd_ray"])
    rows = rows.replace_schema_metadata(None)
    return Evaluation(
        rows,
        pictures,
        tuple(about["students"]),
        tuple(about["metrics"]),
        about["settings"],
        about.get("contents", {}),  # an earlier version's file has neither
        {
            name: {key: InferenceCost(**cost) for key, cost in line.items()}
            for name, line in about.get("costs", {}).items()
        },
    )


def evaluation_folder(out: str) -> str:
    """The directory that an evaluation of the run at `out` is written to."""
    return f"{out.rstrip('/')}/evaluation"

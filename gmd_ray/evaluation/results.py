"""The result of an evaluation: a row for every image, student and metric, and figures computed from them."""

from __future__ import annotations

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

from gmd_ray.config.places import below
from gmd_ray.errors import DataError
from gmd_ray.evaluation.differences import Difference, corrected, paired
from gmd_ray.hashing import short_digest
from gmd_ray.storage import read_bytes, write_bytes

NO_TRUTH = "needs ground truth, which this test set lacks"
"""Value of `error` in rows of a full-reference metric on images without ground truth."""

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
"""Schema of `metrics.parquet`.

`value` is null if `error` gives a reason, `higher_is_better` is null if the metric could not be loaded, and `id` may be
`WHOLE_SET`.
"""

PICTURES = pa.schema([("dataset", pa.string()), ("id", pa.string()), ("name", pa.string()), ("png", pa.binary())])
"""Schema of `pictures.parquet`, PNGs for the report; `name` is a student, `lq`, `hq`, `restored` or `pseudo_target`."""

UNAVAILABLE = "unavailable: "
"""Prefix of `error` in rows of a metric that could not be loaded."""

TRUTH = "hq"
"""Value of `student` in rows about the ground truth: its values of no-reference metrics, its features for FID."""

UNTOUCHED = "lq"
"""Value of `student` in rows about the input as it is."""

WHOLE_SET = ""
"""Value of `id` in rows about a whole test set, such as those of FID."""


@dataclass(frozen=True)
class InferenceCost:
    """Size and speed of a student on a test set."""

    parameters: int | None
    """Number of parameters of the network; None for a student followed by the teacher."""
    seconds: float
    """Median over the images, which the evaluation restores one at a time."""
    device: str
    """The device on which most of the images were restored."""


@dataclass(frozen=True)
class Evaluation:
    """The values of an evaluation and the pictures kept for the report."""

    rows: pa.Table
    """A table of schema `ROWS`."""
    pictures: pa.Table
    """A table of schema `PICTURES`."""
    students: tuple[str, ...]
    """Names of the methods in the order of the table, after `lq`, the untouched photo."""
    metrics: tuple[str, ...]
    """The metrics of the settings, available or not."""
    settings: str
    """Settings that the values depend on besides the images, e.g. the crop border; part of `test_set`."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Digest of the images of each test set, and of the degradation that makes its inputs; part of `test_set`."""
    costs: Mapping[str, Mapping[str, InferenceCost]] = field(default_factory=dict)
    """Costs by test set and student."""
    variants: Mapping[str, str] = field(default_factory=dict)
    """Variant of each metric in words: channels, border, resize."""
    published: str | None = None
    """The paper's table and data set whose rows stand below ours, `evaluation.published`."""

    @cached_property
    def _values(self) -> dict[tuple[str, str, str], dict[str, float]]:
        values: dict[tuple[str, str, str], dict[str, float]] = {}
        for row in self.rows.to_pylist():
            if row["value"] is not None:
                values.setdefault((row["student"], row["dataset"], row["metric"]), {})[row["id"]] = row["value"]
        return values

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """The test sets that were evaluated, of `target` and `source`."""
        present = set(self.rows["dataset"].unique().to_pylist())
        return tuple(name for name in ("target", "source") if name in present)

    @cached_property
    def unavailable(self) -> dict[str, str]:
        """The metrics that could not be loaded, with the reason."""
        return {
            row["metric"]: row["error"].removeprefix(UNAVAILABLE)
            for row in self.rows.to_pylist()
            if row["error"] and row["error"].startswith(UNAVAILABLE)
        }

    @cached_property
    def directions(self) -> dict[str, bool]:
        """True by metric if higher is better; unavailable metrics are missing."""
        pairs = zip(self.rows["metric"].to_pylist(), self.rows["higher_is_better"].to_pylist(), strict=True)
        return {metric: higher for metric, higher in pairs if higher is not None}

    def lacking(self, dataset: str) -> tuple[str, ...]:
        """The metrics that need ground truth which this test set lacks."""
        return tuple(metric for metric in self.metrics if (dataset, metric) in self._without_truth)

    @cached_property
    def _without_truth(self) -> set[tuple[str, str]]:
        rows = self.rows.filter(pc.equal(self.rows["error"], NO_TRUTH))
        return set(zip(rows["dataset"].to_pylist(), rows["metric"].to_pylist(), strict=True))

    def why_missing(self, dataset: str, metric: str) -> str:
        """The reason for which a metric has no value on a test set."""
        no_truth = NO_TRUTH if metric in self.lacking(dataset) else "it was not measured"
        return self.unavailable.get(metric, no_truth)

    def values(self, student: str, dataset: str, metric: str) -> dict[str, float]:
        """Values by image id, without the images that failed."""
        return self._values.get((student, dataset, metric), {})

    def images(self, dataset: str) -> list[str]:
        """The image ids of a test set, sorted, failed ones included."""
        pairs = zip(self.rows["dataset"].to_pylist(), self.rows["id"].to_pylist(), strict=True)
        return sorted({image for name, image in pairs if name == dataset and image != WHOLE_SET})

    def present(self, dataset: str) -> set[str]:
        """The values of `student` in the rows of a test set."""
        return self._present.get(dataset, set())

    @cached_property
    def _present(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for dataset, student in zip(self.rows["dataset"].to_pylist(), self.rows["student"].to_pylist(), strict=True):
            found.setdefault(dataset, set()).add(student)
        return found

    def mean(self, student: str, dataset: str, metric: str) -> float | None:
        """The mean over the images that have a value; None if none has."""
        values = self.values(student, dataset, metric)
        return math.fsum(values.values()) / len(values) if values else None

    def truth(self, dataset: str, metric: str) -> dict[str, float]:
        """Values of the ground truth by image: of no-reference metrics, where a test set has ground truth."""
        return self.values(TRUTH, dataset, metric)

    def difference(self, student: str, dataset: str, metric: str, against: str = "baseline") -> Difference | None:
        """`student` minus `against`, paired by image; None if no image has both.

        Its `adjusted_p` is corrected for all comparisons with `against` on this test set, of every student and metric.
        A no-reference metric is judged by its distance to the ground truth's value where there is one.
        """
        return self._differences(dataset, against).get((student, metric))

    def compare(
        self, dataset: str, metric: str, ours: Mapping[str, float], theirs: Mapping[str, float]
    ) -> Difference | None:
        """Compare values by image as `difference` does, without a correction; None if no image has both."""
        higher, truth = self.directions.get(metric, True), self.truth(dataset, metric)
        return paired(ours, theirs, higher_is_better=higher, truth=truth)

    def _differences(self, dataset: str, against: str) -> dict[tuple[str, str], Difference]:
        """All differences to `against` on a test set by student and metric, corrected for their number."""
        if (dataset, against) not in self._compared:
            found = {}
            for student in self.students:
                for metric in self.metrics if student != against else ():
                    ours, theirs = (self.values(name, dataset, metric) for name in (student, against))
                    difference = self.compare(dataset, metric, ours, theirs)
                    if difference is not None:
                        found[student, metric] = difference
            together = corrected(list(found.values()))
            self._compared[dataset, against] = {
                key: difference for key, difference in zip(found, together, strict=True) if difference is not None
            }
        return self._compared[dataset, against]

    @cached_property
    def _compared(self) -> dict[tuple[str, str], dict[tuple[str, str], Difference]]:
        return {}

    def failures(self, dataset: str) -> list[tuple[str, str, str, int]]:
        """Missing values as (student, metric, reason, number of images), without metrics that this set cannot have."""
        counts = Counter(
            (row["student"], row["metric"], row["error"])
            for row in self.rows.to_pylist()
            if row["dataset"] == dataset and row["error"] and not row["error"].startswith((UNAVAILABLE, NO_TRUTH))
        )
        return [(*key, n) for key, n in sorted(counts.items())]

    def test_set(self, dataset: str) -> str:
        """A short digest of the ids and pixels of the images and of the settings.

        Means of two evaluations are comparable only if it is the same.
        """
        text = "\n".join([self.settings, self.contents.get(dataset, ""), *self.images(dataset)])
        return short_digest(text)

    def picture(self, dataset: str, image: str, name: str) -> bytes | None:
        """The PNG that was kept of an image; None if there is none."""
        return self._pictures.get((dataset, image, name))

    def pictured(self, dataset: str) -> list[str]:
        """The ids of the images of a data set that have pictures, in order."""
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
            "variants": dict(self.variants),
            "published": self.published,
        }
        rows = self.rows.replace_schema_metadata({"gmd_ray": json.dumps(about)})
        for name, table in (("metrics", rows), ("pictures", self.pictures)):
            sink = io.BytesIO()
            pq.write_table(table, sink)
            write_bytes(below(evaluation_folder(out), f"{name}.parquet"), sink.getvalue())


def load_evaluation(out: str) -> Evaluation:
    """Load the evaluation that an earlier run wrote under `out`.

    Raises:
        DataError: there is no evaluation.
    """
    tables = []
    for name in ("metrics", "pictures"):
        place = below(evaluation_folder(out), f"{name}.parquet")
        data = read_bytes(place)
        if data is None:
            raise DataError(f"{place}: no such file; evaluate this run first")
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
        about.get("contents", {}),  # older files have neither contents nor costs
        {
            name: {key: InferenceCost(**cost) for key, cost in line.items()}
            for name, line in about.get("costs", {}).items()
        },
        about.get("variants", {}),
        about.get("published"),
    )


def evaluation_folder(out: str) -> str:
    """The directory of the evaluation of a run at `out`."""
    return below(out, "evaluation")

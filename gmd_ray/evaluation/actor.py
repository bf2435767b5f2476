"""The Ray actor of an evaluation, which runs all methods and metrics on one image after the other."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from gmd_ray.config import Config
from gmd_ray.config.secrets import redact
from gmd_ray.errors import ConfigError, DataError, GmdError
from gmd_ray.evaluation.alignment import align_to
from gmd_ray.evaluation.items import Item
from gmd_ray.evaluation.methods import Runner, StudentRunner, load_methods, plan_methods
from gmd_ray.evaluation.results import NO_TRUTH, PICTURES, ROWS, TRUTH, UNAVAILABLE, UNTOUCHED
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, encode_png, to_tensor
from gmd_ray.images.listing import read_file
from gmd_ray.images.sets.pairs import PairFile, load_pair
from gmd_ray.quality import MetricUnavailable, load_metric, load_set_metric
from gmd_ray.quality.protocol import Metric, SetMetric
from gmd_ray.ray_utils.remote_errors import as_text
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.evaluation")

SCHEMA = pa.schema(
    [
        *ROWS,
        *(column for column in PICTURES if column.name not in ROWS.names),
        pa.field("features", pa.binary()),
        pa.field("content", pa.string()),
        pa.field("seconds", pa.float64()),
        pa.field("parameters", pa.int64()),
        pa.field("device", pa.string()),
        pa.field("warm", pa.bool_()),
    ]
)
"""Schema of the stream, which has five kinds of rows.

Values fill `metric`; features for set metrics such as FID fill `features` too (float32 as bytes); pictures fill `png`
and `name`; the digest of a test image fills `content`; and the time that a method took for it fills `seconds`
(`warm` is false for an actor's first image, which pays for what the first use of a network costs).
"""

FAILURE = "failure"
"""Value of `dataset` in a row that ends the evaluation, whose `error` is from `remote_errors.as_text`."""

PICTURE_SIDE = 320
"""Side in HQ pixels of the centre square that pictures of larger images are cut to, without resampling."""

ADAPTED = "adapted"

Pair = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Arguments of a full-reference metric: output, ground truth, and the pixels that count (None: all)."""


class EvaluationActor:
    """Makes the output of every method for each image, and measures it.

    Restored images are rounded to 8 bits first, as in a saved file. Images are processed one at a time, so that a value
    does not depend on the batch, and a failure costs one value.

    Args:
        cfg: the settings.
        students: paths of checkpoints by name; `methods.plan_methods` adds the rows that the settings ask for.
    """

    def __init__(self, cfg: Config, students: Mapping[str, str]) -> None:
        self.cfg = cfg
        self.methods: dict[str, Runner] = {}
        self.metrics: dict[str, Metric | SetMetric | str] = {}
        self.failure: GmdError | None = None
        self._warm: set[str] = set()
        torch.set_num_threads(max(1, int(cfg.evaluation.pool.num_cpus)))
        try:
            self._load(students)
        except GmdError as error:
            self.failure = error

    def _load(self, students: Mapping[str, str]) -> None:
        cfg = self.cfg.evaluation
        self.methods = load_methods(self.cfg, plan_methods(self.cfg, students))
        for name in cfg.metrics:
            try:
                weights, directory = cfg.weights.get(name), cfg.weights_dir
                of_set = load_set_metric(
                    name, weights=weights, directory=directory, device=cfg.device, crop_border=cfg.crop_border
                )
                self.metrics[name] = of_set or load_metric(
                    name, weights=weights, directory=directory, device=cfg.device, crop_border=cfg.crop_border
                )
            except MetricUnavailable as error:
                self.metrics[name] = str(error).removeprefix(f"metric {name!r} is unavailable: ")
        source = self.cfg.source
        self.degradation = make_degradation(source.degradation, source.degradation_args) if source.degradation else None
        makes_inputs = cfg.source_hq is not None and cfg.source_lq is None
        if makes_inputs and self.degradation is not None and self.degradation.scale != self.scale:
            raise ConfigError(
                f"source.degradation={source.degradation} shrinks by {self.degradation.scale}, the student enlarges by "
                f"{self.scale}: set source.degradation_args.scale={self.scale}"
            )

    @property
    def scale(self) -> int:
        return next(runner.student.scale for runner in self.methods.values() if isinstance(runner, StudentRunner))

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.failure is not None:
            # The failure travels as a row: Ray would restart an actor that raises, and lose the type of the exception.
            row = {"dataset": FAILURE, "error": as_text(self.failure)}
            return pa.Table.from_pylist([row], schema=SCHEMA)
        rows: list[dict[str, Any]] = []
        for item in batch.to_pylist():
            known = {"dataset": item["dataset"], "id": item["id"]}
            rows += [{**known, **row} for row in self._judge(item)]
        return pa.Table.from_pylist(rows, schema=SCHEMA)

    def _judge(self, item: Item) -> Iterator[dict[str, Any]]:
        if item["dataset"] == "pairs":
            yield from self._show_pair(item)
            return
        methods = {name: runner for name, runner in self.methods.items() if runner.serves(item)}
        try:
            lq, hq = self._read(item)
        except Exception as error:  # noqa: BLE001 -- an unreadable image must not end the evaluation
            for name in (UNTOUCHED, *methods):
                yield from self._failed(name, error, bool(item["hq"]))
            return
        yield {"content": _digest([part for part in (lq if item["lq"] else None, hq) if part is not None])}
        if item["picture"]:
            yield {"name": "lq", "png": self._picture(lq, self.scale)}
            if hq is not None:
                yield {"name": "hq", "png": self._picture(hq, 1)}
        if hq is not None:
            yield from self._measure_truth(to_tensor([hq])[0])
        yield from self._measure(UNTOUCHED, _enlarged(lq, self.scale), hq)
        images: dict[str, np.ndarray] = {}
        seconds: dict[str, float] = {}
        for name, runner in methods.items():
            start = time.perf_counter()
            try:
                images[name] = runner(item, lq, images.get(runner.of))
            except Exception as error:  # noqa: BLE001 -- one method that fails on one image must not end it either
                yield from self._failed(name, error, hq is not None)
                continue
            # The image is on the host by now, so that GPU work is included in the time.
            seconds[name] = time.perf_counter() - start + seconds.get(runner.of, 0)
            if runner.device:
                cost = {"parameters": runner.parameters, "device": runner.device, "warm": name in self._warm}
                yield {"student": name, "seconds": seconds[name], **cost}
            self._warm.add(name)
            if item["picture"]:
                yield {"name": name, "png": self._picture(images[name], 1)}
            yield from self._measure(name, images[name], hq)

    def _show_pair(self, item: Item) -> Iterator[dict[str, Any]]:
        """Show the adapted student's output for a row of the pair store."""
        try:
            restored = self.methods[ADAPTED](item, decode_png(item["data"]), None)
        except Exception:  # the report can do without this picture
            log.warning("%s: the adapted student cannot restore it", item["id"], exc_info=True)
            return
        yield {"name": ADAPTED, "png": self._picture(restored, 1)}

    def _read(self, item: Item) -> tuple[np.ndarray, np.ndarray | None]:
        """Load the input and, if there is one, the ground truth: float32 RGB in [0, 1], (H, W, 3)."""
        gray = self.cfg.target.gray if item["dataset"] == "target" else self.cfg.source.gray
        if not item["hq"]:
            return decode_image(read_file(item["lq"]), gray=gray), None
        pair = PairFile(item["id"], item["lq"] or None, item["hq"])
        key = ("source-test", self.cfg.seed, item["id"])
        return load_pair(pair, None if pair.lq else self.degradation, gray, key, self.scale)

    def _measure(self, name: str, image: np.ndarray, truth: np.ndarray | None) -> Iterator[dict[str, Any]]:
        """Measure an output, aligned to the truth first where that is asked for and the metric compares the two."""
        tensor = to_tensor([image])[0]
        pair: Pair | Exception | None = None if truth is None else self._pair(image, truth)
        for metric_name, metric in self.metrics.items():
            if isinstance(metric, str):
                yield {"student": name, "metric": metric_name, "error": UNAVAILABLE + metric}
                continue
            row = {"student": name, "metric": metric_name, "higher_is_better": metric.higher_is_better}
            if pair is None and metric.needs_reference:
                yield {**row, "error": NO_TRUTH}
                continue
            try:
                if isinstance(metric, SetMetric):
                    row["features"] = metric.features(tensor).tobytes()
                elif not metric.needs_reference:
                    row["value"] = float(metric(tensor))
                elif isinstance(pair, Exception):
                    raise pair
                else:
                    assert pair is not None
                    row["value"] = float(metric(*pair))
            except Exception as error:  # noqa: BLE001 -- for example NIQE on a small image, or a shape that differs
                row["error"] = _reason(error)
            yield row

    def _pair(self, image: np.ndarray, truth: np.ndarray) -> Pair | Exception:
        """The arguments of a full-reference metric, or the reason why the two cannot be aligned."""
        if self.cfg.evaluation.align == "none":
            return to_tensor([image])[0], to_tensor([truth])[0], None
        try:
            moved, covered = align_to(image, truth)
        except DataError as error:
            return error
        return to_tensor([moved])[0], to_tensor([truth])[0], torch.from_numpy(covered)

    def _measure_truth(self, truth: torch.Tensor) -> Iterator[dict[str, Any]]:
        """Values of the ground truth itself: no-reference metrics, which are judged by them, and features for FID.

        Without its features, a metric of sets reports the failure itself.
        """
        for name, metric in self.metrics.items():
            if isinstance(metric, SetMetric):
                with contextlib.suppress(GmdError):
                    yield {"student": TRUTH, "metric": name, "features": metric.features(truth).tobytes()}
            elif not isinstance(metric, str) and not metric.needs_reference:
                row: dict[str, Any] = {"student": TRUTH, "metric": name, "higher_is_better": metric.higher_is_better}
                try:
                    row["value"] = float(metric(truth))
                except Exception as error:  # noqa: BLE001 -- as for an output
                    row["error"] = _reason(error)
                yield row

    def _failed(self, student: str, error: Exception, has_truth: bool) -> Iterator[dict[str, Any]]:
        """Rows for an image on which a method failed."""
        for name, metric in self.metrics.items():
            row: dict[str, Any] = {"student": student, "metric": name}
            if isinstance(metric, str):
                yield {**row, "error": UNAVAILABLE + metric}
            else:
                reason = NO_TRUTH if metric.needs_reference and not has_truth else _reason(error)
                yield {**row, "error": reason, "higher_is_better": metric.higher_is_better}

    def _picture(self, image: np.ndarray, scale: int) -> bytes:
        return encode_png(centre(image, PICTURE_SIDE // scale), level=6)


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    """The photo as it is, (h, w, 3), enlarged by bicubic interpolation to the size of an output."""
    if scale == 1:
        return image
    size = (image.shape[1] * scale, image.shape[0] * scale)
    return np.clip(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), 0, 1)


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """Cut the centre out of an (H, W, 3) image, at most `side` pixels each way."""
    top, left = max(0, image.shape[0] - side) // 2, max(0, image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _digest(images: Sequence[np.ndarray]) -> str:
    """A digest of images as 8-bit samples, independent of the file format that they came in."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.shape}".encode())
        digest.update(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).tobytes())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """The error in one line that is short enough for a table."""
    text = redact(one_line(error, 300))
    return text if isinstance(error, GmdError) else f"{type(error).__name__}: {text}"

"""The actor of an evaluation: every student and every metric over one image after the other."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gmd_ray.config import Config
from gmd_ray.config.secrets import redact
from gmd_ray.errors import ConfigError, GmdError
from gmd_ray.evaluation.items import Item, taught, taught_students
from gmd_ray.evaluation.results import NO_TRUTH, PICTURES, ROWS, UNAVAILABLE
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, encode_png, to_images, to_tensor
from gmd_ray.images.listing import read_file
from gmd_ray.images.sets.pairs import PairFile, load_pair
from gmd_ray.quality import MetricUnavailable, load_metric, load_set_metric
from gmd_ray.quality.protocol import Metric, SetMetric
from gmd_ray.students import load_student
from gmd_ray.students.protocol import Student
from gmd_ray.teachers import load_teacher

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
    ]
)
"""Rows of five kinds in one stream: values have `metric`, what set metrics compare `features` too (float32), pictures
`png` and `name`, an image's digest `content`, and what a student took for it `seconds`."""

REFERENCE = "hq"
"""`student` of the features of ground truths."""

FAILURE = "failure"
"""`dataset` of a row that ends the evaluation: `id` is the type of the error, `error` its text."""

PICTURE_SIDE = 320
"""Pictures of larger images are cut to a centre square of this many HQ pixels, at their own resolution."""

ADAPTED = "adapted"


class Judge:
    """Restores each image with every student, projects it where asked to, and measures what comes out.

    Restored images are rounded to 8 bits first, as a saved file would be. One image at a time: a value depends on
    neither the batch it rides in nor its neighbours, and what fails is one value.
    """

    def __init__(self, cfg: Config, students: Mapping[str, str]) -> None:
        self.cfg = cfg
        self.students: dict[str, Student] = {}
        self.taught = {taught(name): name for name in taught_students(cfg, students)}
        self.metrics: dict[str, Metric | SetMetric | str] = {}
        self.parameters: dict[str, int] = {}
        self.device = ""
        self.failure: GmdError | None = None
        torch.set_num_threads(max(1, int(cfg.evaluation.pool.num_cpus)))
        try:
            self._load(students)
        except GmdError as error:
            self.failure = error

    def _load(self, students: Mapping[str, str]) -> None:
        cfg = self.cfg.evaluation
        for name, path in students.items():
            student = load_student(replace(self.cfg.student, path=path, device=cfg.device))
            self.students[name] = student
            self.parameters[name] = sum(parameter.numel() for parameter in student.module.parameters())
            self.device = _device_name(student.module)
        if self.taught:
            # One image at a time: a compiled teacher would fill each up to the pool's batch, and project that.
            pool = replace(self.cfg.teacher.pool, batch_size=1)
            self.teacher = load_teacher(replace(self.cfg.teacher, device=cfg.device, pool=pool))
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
        return next(iter(self.students.values())).scale

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self.failure is not None:
            # As a row: Ray would start an actor that fails again and again, and lose an exception's type on its way.
            row = {"dataset": FAILURE, "id": type(self.failure).__name__, "error": str(self.failure)}
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
        names = [*(["lq"] if self.scale == 1 else []), *self.students]
        rows = [*names, *self.taught]
        try:
            lq, hq = self._read(item)
        except Exception as error:  # noqa: BLE001 - one unreadable image must not end the evaluation
            for name in rows:
                yield from self._failed(name, error, bool(item["hq"]))
            return
        yield {"content": _digest([part for part in (lq if item["lq"] else None, hq) if part is not None])}
        if item["picture"]:
            yield {"name": "lq", "png": self._picture(lq, self.scale)}
            if hq is not None:
                yield {"name": "hq", "png": self._picture(hq, 1)}
        reference = None if hq is None else to_tensor([hq])[0]
        if reference is not None:
            yield from self._reference_features(reference)
        images: dict[str, np.ndarray] = {"lq": lq}
        seconds: dict[str, float] = {}
        for name in rows:
            start = time.perf_counter()
            try:
                if name in self.students:
                    images[name] = self._restore(name, lq, item["id"])
                elif name in self.taught:
                    images[name] = self._project(images.get(self.taught[name]), item["id"])
            except Exception as error:  # noqa: BLE001 - the same, for one student on one image
                yield from self._failed(name, error, hq is not None)
                continue
            if name != "lq":  # the image is on the host by now, so the device has done its work
                seconds[name] = time.perf_counter() - start + seconds.get(self.taught.get(name, ""), 0)
                cost = {"parameters": self.parameters.get(name), "device": self.device}
                yield {"student": name, "seconds": seconds[name], **cost}
            if item["picture"] and name != "lq":
                yield {"name": name, "png": self._picture(images[name], 1)}
            yield from self._measure(name, to_tensor([images[name]])[0], reference)

    def _show_pair(self, item: Item) -> Iterator[dict[str, Any]]:
        """The adapted student's output for a row of the pair store."""
        try:
            restored = self._restore(ADAPTED, decode_png(item["data"]), item["id"])
        except Exception:  # a picture that the report does without
            log.warning("%s: the adapted student cannot restore it", item["id"], exc_info=True)
            return
        yield {"name": ADAPTED, "png": self._picture(restored, 1)}

    def _read(self, item: Item) -> tuple[np.ndarray, np.ndarray | None]:
        """The input and, where known, the ground truth: float32 RGB in [0, 1], (H, W, 3)."""
        gray = self.cfg.target.gray if item["dataset"] == "target" else self.cfg.source.gray
        if not item["hq"]:
            return decode_image(read_file(item["lq"]), gray=gray), None
        pair = PairFile(item["id"], item["lq"] or None, item["hq"])
        key = ("source-test", self.cfg.seed, item["id"])
        return load_pair(pair, None if pair.lq else self.degradation, gray, key, self.scale)

    def _restore(self, name: str, lq: np.ndarray, image_id: str) -> np.ndarray:
        return _rounded(self.students[name].restore(to_tensor([lq]), [image_id]), "restored")

    def _project(self, restored: np.ndarray | None, image: str) -> np.ndarray:
        """Online use: the teacher on a student's output at test time, rounded before and after as in a pair store."""
        if restored is None:
            raise ValueError("the student failed, there is nothing to project")
        return _rounded(self.teacher.project(to_tensor([restored]), [image]), "projected")

    def _measure(self, student: str, image: torch.Tensor, reference: torch.Tensor | None) -> Iterator[dict[str, Any]]:
        for name, metric in self.metrics.items():
            if isinstance(metric, str):
                yield {"student": student, "metric": name, "error": UNAVAILABLE + metric}
                continue
            row: dict[str, Any] = {"student": student, "metric": name, "higher_is_better": metric.higher_is_better}
            if reference is None and metric.needs_reference:
                yield {**row, "error": NO_TRUTH}
                continue
            try:
                if isinstance(metric, SetMetric):
                    row["features"] = metric.features(image).tobytes()
                else:
                    row["value"] = float(metric(image, reference if metric.needs_reference else None))
            except Exception as error:  # noqa: BLE001 - NIQE on a small image, a shape that does not match
                row["error"] = _reason(error)
            yield row

    def _reference_features(self, reference: torch.Tensor) -> Iterator[dict[str, Any]]:
        """What set metrics compare the students' images with; where it fails, so do those."""
        for name, metric in self.metrics.items():
            if isinstance(metric, SetMetric):
                with contextlib.suppress(GmdError):
                    yield {"student": REFERENCE, "metric": name, "features": metric.features(reference).tobytes()}

    def _failed(self, student: str, error: Exception, has_truth: bool) -> Iterator[dict[str, Any]]:
        """Rows of an image that a student has no output for."""
        for name, metric in self.metrics.items():
            row: dict[str, Any] = {"student": student, "metric": name}
            if isinstance(metric, str):
                yield {**row, "error": UNAVAILABLE + metric}
            else:
                reason = NO_TRUTH if metric.needs_reference and not has_truth else _reason(error)
                yield {**row, "error": reason, "higher_is_better": metric.higher_is_better}

    def _picture(self, image: np.ndarray, scale: int) -> bytes:
        return encode_png(centre(image, PICTURE_SIDE // scale), level=6)


def _rounded(images: torch.Tensor, what: str) -> np.ndarray:
    """The one image of a batch at 8 bits: float32 (H, W, 3)."""
    [image] = to_images(images)
    if not np.isfinite(image).all():
        raise ValueError(f"the {what} image has values that are not finite")
    return (np.rint(np.clip(image, 0, 1) * 255) / 255).astype(np.float32)


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an (H, W, 3) image, at most `side` pixels each way."""
    top, left = max(0, image.shape[0] - side) // 2, max(0, image.shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def _digest(images: Sequence[np.ndarray]) -> str:
    """Of the pictures as 8-bit samples, whatever file they came in."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.shape}".encode())
        digest.update(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).tobytes())
    return digest.hexdigest()


def _device_name(module: torch.nn.Module) -> str:
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type == "cuda":
        return torch.cuda.get_device_name(parameter.device)
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads > 1 else ''})"


def _reason(error: Exception) -> str:
    """One line, short enough for a table."""
    text = redact(" ".join(str(error).split()))[:300]
    return text if isinstance(error, GmdError) else f"{type(error).__name__}: {text}"

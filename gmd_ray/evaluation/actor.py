"""The Ray actor of an evaluation, which runs all students and metrics on one image after the other."""

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
from gmd_ray.evaluation.items import Item, students_with_teacher, with_teacher_row
from gmd_ray.evaluation.results import NO_TRUTH, PICTURES, ROWS, TRUTH, UNAVAILABLE
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, encode_png, to_images, to_tensor
from gmd_ray.images.listing import read_file
from gmd_ray.images.sets.pairs import PairFile, load_pair
from gmd_ray.quality import MetricUnavailable, load_metric, load_set_metric
from gmd_ray.quality.protocol import Metric, SetMetric
from gmd_ray.ray_utils.remote_errors import as_text
from gmd_ray.students import load_student
from gmd_ray.students.protocol import Student
from gmd_ray.teachers import load_teacher
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
    ]
)
"""Schema of the stream, which has five kinds of rows.

Values fill `metric`; features for set metrics such as FID fill `features` too (float32 as bytes); pictures fill `png`
and `name`; the digest of a test image fills `content`; and the time that a student took for it fills `seconds`.
"""

FAILURE = "failure"
"""Value of `dataset` in a row that ends the evaluation, whose `error` is from `remote_errors.as_text`."""

PICTURE_SIDE = 320
"""Side in HQ pixels of the centre square that pictures of larger images are cut to, without resampling."""

ADAPTED = "adapted"


class EvaluationActor:
    """Restores each image with every student, projects it where asked to, and measures what comes out.

    Restored images are rounded to 8 bits first, as in a saved file. Images are processed one at a time, so that a value
    does not depend on the batch, and a failure costs one value.

    Args:
        cfg: the settings.
        students: paths of checkpoints by name.
    """

    def __init__(self, cfg: Config, students: Mapping[str, str]) -> None:
        self.cfg = cfg
        self.students: dict[str, Student] = {}
        self.with_teacher = {with_teacher_row(name): name for name in students_with_teacher(cfg, students)}
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
        if self.with_teacher:
            # It gets one image at a time, or as many tiles of one as the pool's batch size says.
            pool = self.cfg.teacher.pool if self.cfg.teacher.tile else replace(self.cfg.teacher.pool, batch_size=1)
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
        names = [*(["lq"] if self.scale == 1 else []), *self.students]
        rows = [*names, *self.with_teacher]
        try:
            lq, hq = self._read(item)
        except Exception as error:  # noqa: BLE001 -- an unreadable image must not end the evaluation
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
                elif name in self.with_teacher:
                    images[name] = self._project(images.get(self.with_teacher[name]), item["id"])
            except Exception as error:  # noqa: BLE001 -- one student that fails on one image must not end it either
                yield from self._failed(name, error, hq is not None)
                continue
            if name != "lq":  # the image is on the host by now, so that GPU work is included in the time
                seconds[name] = time.perf_counter() - start + seconds.get(self.with_teacher.get(name, ""), 0)
                cost = {"parameters": self.parameters.get(name), "device": self.device}
                yield {"student": name, "seconds": seconds[name], **cost}
            if item["picture"] and name != "lq":
                yield {"name": name, "png": self._picture(images[name], 1)}
            yield from self._measure(name, to_tensor([images[name]])[0], reference)

    def _show_pair(self, item: Item) -> Iterator[dict[str, Any]]:
        """Show the adapted student's output for a row of the pair store."""
        try:
            restored = self._restore(ADAPTED, decode_png(item["data"]), item["id"])
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

    def _restore(self, name: str, lq: np.ndarray, image_id: str) -> np.ndarray:
        return _rounded(self.students[name].restore(to_tensor([lq]), [image_id]), "restored")

    def _project(self, restored: np.ndarray | None, image: str) -> np.ndarray:
        """Project a student's output with the teacher, both rounded to 8 bits as in a pair store."""
        if restored is None:
            raise ValueError("the student failed, so that there is nothing to project")
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
            except Exception as error:  # noqa: BLE001 -- for example NIQE on a small image, or a shape that differs
                row["error"] = _reason(error)
            yield row

    def _reference_features(self, reference: torch.Tensor) -> Iterator[dict[str, Any]]:
        """Features of the ground truth for set metrics. Without them, those metrics report the failure themselves."""
        for name, metric in self.metrics.items():
            if isinstance(metric, SetMetric):
                with contextlib.suppress(GmdError):
                    yield {"student": TRUTH, "metric": name, "features": metric.features(reference).tobytes()}

    def _failed(self, student: str, error: Exception, has_truth: bool) -> Iterator[dict[str, Any]]:
        """Rows for an image on which a student failed."""
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
    """Round the only image of a batch (1, 3, H, W) to 8-bit levels: float32 (H, W, 3) in [0, 1]."""
    [image] = to_images(images)
    if not np.isfinite(image).all():
        raise ValueError(f"the {what} image has values that are not finite")
    return (np.rint(np.clip(image, 0, 1) * 255) / 255).astype(np.float32)


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


def _device_name(module: torch.nn.Module) -> str:
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type == "cuda":
        return torch.cuda.get_device_name(parameter.device)
    threads = torch.get_num_threads()
    return f"CPU ({threads} thread{'s' if threads > 1 else ''})"


def _reason(error: Exception) -> str:
    """The error in one line that is short enough for a table."""
    text = redact(one_line(error, 300))
    return text if isinstance(error, GmdError) else f"{type(error).__name__}: {text}"

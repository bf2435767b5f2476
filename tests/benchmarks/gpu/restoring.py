"""Restoring with the unadapted and the adapted student in turns: images/s, and the ratio of their times."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from gmd_ray.config import StudentConfig
from gmd_ray.folders.restore_worker import RestoreJob, Restorer
from gmd_ray.images.files.encode import encode_png
from gmd_ray.students import Student, load_student
from tests.benchmarks.gpu.sections import Sections, clock
from tests.benchmarks.gpu.student_models import Recipe
from tests.benchmarks.latency import trained_a_step
from tests.benchmarks.training import picture


class RestoringTable:
    """The rows of one student, as it is and after a step of training, saved and loaded again."""

    def __init__(
        self, recipe: Recipe, folder: Path, side: int, seconds: float, sections: Sections, device: torch.device
    ) -> None:
        """
        Args:
            recipe: the student.
            folder: an empty folder for its files.
            side: side of the photos in pixels.
            seconds: time of a row after its warm-up; three pairs at least.
            sections: keeps the rows.
            device: where the students run.
        """
        self.name, self.side, self.sections, self._seconds = recipe.name, side, sections, seconds
        self._folder, self.cuda = folder, device.type == "cuda"
        source = recipe.write(folder)
        adapted = folder / f"adapted{source.suffix if source.is_file() else ''}"
        begun = time.perf_counter()
        with recipe.reading(device):
            trained_a_step(source, adapted, str(device))
        saved = time.perf_counter()
        trained = load_student(StudentConfig(path=str(adapted), device=str(device)))
        loaded = time.perf_counter()
        self.students = (recipe.load(source, device), trained)
        one, other = (dict(student.module.named_parameters()) for student in self.students)
        changed = sum(not torch.equal(one[key], other[key]) for key in one)
        assert changed, "the step of training changed nothing"
        sections.keep(f"{self.name}: export", step_and_save_s=saved - begun, load_s=loaded - saved, changed=changed)
        sections.say(
            f"{self.name}: a step and its export {saved - begun:.1f} s, loading it {loaded - saved:.1f} s; "
            f"{changed} of {len(one)} parameters differ"
        )

    def row(self, batch: int, dtype: str, most: int = 40) -> None:
        """Time `Student.restore` of both students in turns, each first in every other pair, and print a row.

        Args:
            batch: photos restored together; they come from the host and return to it.
            dtype: `student.dtype`.
            most: bound of the number of pairs.
        """
        for student in self.students:
            student._dtype = dtype  # type: ignore[attr-defined]  # loading anew would hash gigabytes
        photos = torch.rand(batch, 3, self.side, self.side, generator=torch.Generator().manual_seed(0))
        ids = [str(number) for number in range(batch)]
        if self.cuda:
            torch.cuda.empty_cache()
        with FlopCounterMode(display=False) as counter:
            self.students[0].restore(photos, ids)
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        for student in self.students:
            once = _seconds(student, photos, ids)
        pairs: list[tuple[float, float]] = []
        for number in range(max(3, min(most, int(self._seconds / (2 * once))))):
            found = [0.0, 0.0]
            for which in (0, 1) if number % 2 == 0 else (1, 0):
                found[which] = _seconds(self.students[which], photos, ids)
            pairs.append((found[0], found[1]))
        plain, adapted = (statistics.median(column) for column in zip(*pairs, strict=True))
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0
        rate = counter.get_total_flops() / plain
        self.sections.keep(
            f"{self.name}: restoring", batch=batch, dtype=dtype, side=self.side, scale=self.students[0].scale,
            pairs=pairs, ratio=adapted / plain, tflops=rate / 1e12, peak_gb=peak,
        )  # fmt: skip
        self.sections.say(
            f"| {self.name} x{self.students[0].scale} | {self.side} px, batch {batch}, {dtype} | "
            f"{batch / plain:.3g} images/s, adapted {batch / adapted:.3g} | ratio {adapted / plain:.3f} of "
            f"{len(pairs)} pairs | {rate / 1e12:.3g} TFLOP/s | {peak:.1f} GB |"
        )

    def own_masks(self) -> None:
        """Time a photo with the attention masks that spandrel computes on the CPU, for a student that has such."""
        student, photo = self.students[0], torch.rand(1, 3, self.side, self.side)
        student._dtype = "float32"  # type: ignore[attr-defined]
        ours = student.restore(photo, ["0"])
        fast = _seconds(student, photo, ["0"])
        kept = {part: vars(part).pop("calculate_mask") for part in student.module.modules() if _masks(part)}
        if not kept:
            return
        theirs = student.restore(photo, ["0"])
        slow = _seconds(student, photo, ["0"])
        for part, masks in kept.items():
            part.calculate_mask = masks
        gap, threads = (ours - theirs).abs().max().item(), torch.get_num_threads()
        self.sections.keep(f"{self.name}: masks", device_s=fast, cpu_s=slow, threads=threads, gap=gap)
        self.sections.say(
            f"{self.name}: masks computed on the device {1e3 * fast:.0f} ms a photo, by {threads} threads of the CPU "
            f"{1e3 * slow:.0f} ms; pixels differ by {gap:.1e} at most"
        )

    def files(self, batch: int, dtype: str) -> None:
        """Time the worker of `gmd-ray restore`: PNG files read, restored by the adapted student, and written."""
        student = self.students[1]
        student._dtype = dtype  # type: ignore[attr-defined]
        photos, out = self._folder / "photos", self._folder / "restored"
        for place in (photos, out):
            place.mkdir(exist_ok=True)
        jobs = []
        for number in range(batch):
            name = f"{number}.png"
            (photos / name).write_bytes(encode_png(picture(number, self.side, self.side)))
            jobs.append(RestoreJob(name, str(photos / name), name))
        threads = torch.get_num_threads()
        with mock.patch("gmd_ray.students.load_student", return_value=student):
            worker = Restorer(StudentConfig(path="loaded already"), 10**8)
        torch.set_num_threads(threads)  # the worker took its one CPU
        times = []
        for _ in range(3):
            begun = clock()
            errors = [row["error"] for row in worker(jobs, str(out)) if row["error"]]
            times.append(clock() - begun)
            assert not errors, errors[0]
        found = statistics.median(times)
        self.sections.keep(f"{self.name}: files", batch=batch, dtype=dtype, side=self.side, seconds=times)
        self.sections.say(f"{self.name}: PNG to PNG, batch {batch}, {dtype}: {batch / found:.3g} images/s")


def _masks(part: torch.nn.Module) -> bool:
    return "calculate_mask" in vars(part)


def _seconds(student: Student, photos: torch.Tensor, ids: list[str]) -> float:
    begun = clock()
    student.restore(photos, ids)
    return clock() - begun

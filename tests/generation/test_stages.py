"""What a stage hands to its model."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from gmd_ray.generation.stages import Restore, _Batch


def test_stage_0_tells_the_student_whose_image_it_is() -> None:
    """A student that samples draws its noise from the id; without it a renamed or resumed run would differ."""

    class Student:
        seen: list[str] = []

        def restore(self, lq: torch.Tensor, ids: list[str]) -> torch.Tensor:
            self.seen += ids
            return lq

    stage = Restore.__new__(Restore)  # without an actor's start-up
    stage.model, stage._threads = Student(), ThreadPoolExecutor(1)
    rows = stage.run(_Batch(torch.rand(2, 3, 4, 5), [(4, 5)] * 2), ["a/b.png", "c.png"])
    assert Student.seen == ["a/b.png", "c.png"]
    assert len(rows) == 2

"""The actor of an evaluation, called as Ray calls it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch
from PIL import Image

from gmd_ray.config import Config, StudentConfig
from gmd_ray.evaluation.actor import EvaluationActor
from gmd_ray.images.files.encode import decode_png
from gmd_ray.students import load_student
from gmd_ray.students.latent.presets import new_latent_student


def test_a_sampling_student_is_judged_by_the_noise_of_each_images_id(tmp_path: Path) -> None:
    Image.effect_noise((40, 32), 40).convert("RGB").save(tmp_path / "photo.png")
    path = str(tmp_path / "ldm")
    new_latent_student("ldm-tiny", Path(path))
    cfg = Config()
    cfg.evaluation.metrics, cfg.evaluation.device = ["psnr"], "cpu"
    judge = EvaluationActor(cfg, {"baseline": path, "adapted": path})
    file = str(tmp_path / "photo.png")
    item = {"dataset": "target", "id": "sub/photo.png", "lq": file, "hq": file, "picture": True, "data": None}
    rows = judge(pa.Table.from_pylist([item])).to_pylist()
    pictures = {row["name"]: decode_png(row["png"]) for row in rows if row["png"]}
    lq = torch.from_numpy(pictures["lq"]).permute(2, 0, 1)[None]
    student = load_student(StudentConfig(path=path, device="cpu"))
    expected = student.restore(lq, ["sub/photo.png"])[0].permute(1, 2, 0).numpy()
    for name in ("baseline", "adapted"):
        assert abs(pictures[name] - expected).max() <= 0.51 / 255
    assert abs(student.restore(lq, ["photo.png"])[0].permute(1, 2, 0).numpy() - expected).max() > 5 / 255

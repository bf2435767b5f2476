"""Online use: rows of a student and then the teacher, at test time."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from gmd_ray.config import Config, InjectionConfig, TeacherConfig
from gmd_ray.config.load import load_config
from gmd_ray.config.requirements import require
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.evaluation import evaluate, load_evaluation
from gmd_ray.evaluation.summaries import markdown
from gmd_ray.images.files.encode import decode_png, to_images, to_tensor
from gmd_ray.teachers import load_teacher
from tests.evaluation.conftest import write_store
from tests.evaluation.test_evaluate import judged, levels, psnr, read, restored
from tests.teachers.conftest import make_flux, make_sd
from tests.teachers.text_encoders import write_text_encoders


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with text encoders and no prompt table, so that the run has to encode its prompts."""
    path = make_flux(tmp_path_factory.mktemp("online") / "flux", autoencoder=False)
    (path / "prompt_embeddings.safetensors").unlink()
    write_text_encoders(path)
    return path


@pytest.fixture
def online(run: Config, flux: Path) -> Config:
    """SDEdit, for it depends on the image's id."""
    run.teacher = TeacherConfig(
        path=str(flux),
        method="sdedit",
        strength=0.3,
        steps=1,
        max_sequence_length=7,
        injection=InjectionConfig(steps=0),
    )
    run.evaluation.online = ["baseline"]
    run.evaluation.limit = 3
    return run


def expected(cfg: Config, path: str, lq: np.ndarray, image: str) -> np.ndarray:
    """The student's output as a file would hold it, then the teacher, by hand."""
    first = (levels(restored(cfg, path, lq)) / 255).astype(np.float32)
    return to_images(load_teacher(cfg.teacher).project(to_tensor([first]), [image]))[0]


@pytest.mark.usefixtures("ray_session")
def test_values_are_those_of_a_plain_loop_of_the_student_and_then_the_teacher(
    online: Config, students: dict[str, str], tmp_path: Path
) -> None:
    online.evaluation.limit = None
    write_store(tmp_path / "out", [5.0, 4.5, 4.0, None])
    found = evaluate(online, students)
    for dataset, count in (("target", 6), ("source", 4)):
        assert len(found.images(dataset)) == count
        for image in found.images(dataset):
            lq, hq = (read(tmp_path / dataset / side / image) for side in ("lq", "hq"))
            outputs = {name: restored(online, path, lq) for name, path in students.items()} | {"lq": lq}
            for name, output in outputs.items():
                assert found.values(name, dataset, "psnr")[image] == pytest.approx(psnr(output, hq), abs=1e-6)
    assert found.students == ("lq", "baseline", "baseline+teacher", "adapted")
    for image in found.images("target")[:3]:
        lq, hq = (read(tmp_path / "target" / side / image) for side in ("lq", "hq"))
        output = expected(online, students["baseline"], lq, image)
        assert found.values("baseline+teacher", "target", "psnr")[image] == pytest.approx(psnr(output, hq), abs=0.01)
        if image in found.pictured("target"):
            picture = decode_png(found.picture("target", image, "baseline+teacher") or b"")
            assert np.abs(levels(picture) - levels(output)).max() <= 1
    difference = found.difference("baseline+teacher", "target", "psnr")
    assert difference is not None
    assert abs(difference.mean) > 0.1
    assert len(list((tmp_path / "out" / "prompts").iterdir())) == 1, "encoded once, not by each actor"

    # What is on disk is the same, complete, and pictures are kept of the images that the report will show.
    rows = pq.read_table(tmp_path / "out" / "evaluation" / "metrics.parquet")
    assert rows.num_rows == (6 + 4) * len(found.students) * 2
    assert rows["error"].null_count == rows.num_rows
    assert "| baseline+teacher |" in markdown(found)
    assert markdown(load_evaluation(online.out)) == markdown(found)
    assert load_evaluation(online.out).students == found.students
    assert found.pictured("target") == [f"{i:02}.png" for i in range(6)], "three by their places, six by their gains"
    shown = decode_png(found.picture("target", "02.png", "adapted") or b"")
    adapted = restored(online, students["adapted"], read(tmp_path / "target/lq/02.png"))
    assert np.array_equal(levels(shown), levels(adapted))
    assert found.pictured("pairs") == ["00.png", "01.png", "02.png"]


@pytest.mark.parametrize("method", ["inversion", "sdedit", "kontext", "ddim"])
def test_every_method_of_the_paper(run: Config, students: dict[str, str], method: str, tmp_path: Path) -> None:
    make = make_sd if method == "ddim" else partial(make_flux, autoencoder=False)
    injection = InjectionConfig(blocks="all", steps=1)
    run.teacher = TeacherConfig(
        path=str(make(tmp_path / "teacher")), method=method, prompt="a sharp photo", steps=2, injection=injection
    )
    run.evaluation.online = ["baseline"]
    run.evaluation.limit = 2
    found = judged(run, students)
    for image in found.images("target"):
        lq, hq = (read(tmp_path / "target" / side / image) for side in ("lq", "hq"))
        output = expected(run, students["baseline"], lq, image)
        value = found.values("baseline+teacher", "target", "psnr")[image]
        assert value == pytest.approx(psnr(output, hq), abs=0.01)
        assert abs(value - found.values("baseline", "target", "psnr")[image]) > 0.1, "the teacher did something"


class Brighten:
    """A teacher plugin."""

    fingerprint = "brighten"

    def __init__(self, cfg: TeacherConfig) -> None: ...

    def project(self, images: torch.Tensor, ids: list[str]) -> torch.Tensor:
        if ids == ["01.png"]:
            raise RuntimeError("not this one")
        return images + 0.125


@pytest.fixture
def plugged(online: Config) -> Config:
    online.teacher = TeacherConfig(method=f"{__name__}:Brighten")
    return online


def test_true_is_every_student(plugged: Config, students: dict[str, str], tmp_path: Path) -> None:
    plugged.evaluation.online = True
    found = judged(plugged, students)
    assert found.students == ("lq", "baseline", "baseline+teacher", "adapted", "adapted+teacher")
    for name, path in students.items():
        lq, hq = (read(tmp_path / "target" / side / "00.png") for side in ("lq", "hq"))
        output = levels(restored(plugged, path, lq)) / 255 + 0.125
        value = found.values(f"{name}+teacher", "target", "psnr")["00.png"]
        assert value == pytest.approx(psnr(output, hq), abs=1e-4)


def test_a_failure_is_the_rows_own(plugged: Config, students: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "target" / "lq" / "02.png").write_bytes(b"not a picture")
    found = judged(plugged, students)
    assert len(found.values("baseline", "target", "psnr")) == 2
    assert len(found.values("baseline+teacher", "target", "psnr")) == 1
    reasons = {reason for student, _, reason, _ in found.failures("target") if student == "baseline+teacher"}
    assert any("not this one" in reason for reason in reasons)
    assert any("not an image" in reason for reason in reasons)


def test_off_by_default(run: Config, students: dict[str, str]) -> None:
    assert judged(run, students).students == ("lq", "baseline", "adapted")


def test_mistakes_are_one_line(online: Config, students: dict[str, str], tmp_path: Path) -> None:
    online.evaluation.online = ["basline"]
    with pytest.raises(ConfigError, match=r"evaluation.online: no student 'basline'; did you mean 'baseline'"):
        evaluate(online, students)
    with pytest.raises(ConfigError, match=r"evaluation.online=3: must be true, false, or a list"):
        load_config(["evaluation.online=3"])
    cfg = load_config(["evaluation.online=true", "student.path=s3://b/s.pth", "evaluation.target_lq=s3://b/lq"])
    with pytest.raises(ConfigError, match=r"evaluate needs teacher\.path"):
        require(cfg, "evaluate")
    online.evaluation.online = True
    online.teacher = replace(online.teacher, path=str(tmp_path / "nowhere"))
    failure = judge_failure(online, students)
    assert isinstance(failure, ModelError)
    assert "no such directory" in str(failure)


def judge_failure(cfg: Config, students: dict[str, str]) -> Exception | None:
    from gmd_ray.evaluation.actor import EvaluationActor

    return EvaluationActor(cfg, students).failure

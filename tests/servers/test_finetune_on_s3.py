"""A fine-tune in a bucket, with Ray Train's own management of checkpoints: stopped, resumed, and of a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from gmd_ray import storage
from gmd_ray.config import Config
from gmd_ray.progress import NullRecorder
from gmd_ray.students import load_student
from gmd_ray.students.latent.presets import new_latent_student
from gmd_ray.training import finetune
from tests.servers.running import S3Server
from tests.training.conftest import fit_in_process
from tests.training.toys import make_config

pytestmark = pytest.mark.slow


class KilledError(Exception):
    """The end of a process, as far as its files show it."""


class Killer(NullRecorder):
    """Ends training when a step is logged."""

    def __init__(self, step: int) -> None:
        self._step = step

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        if step == self._step:
            raise KilledError


@pytest.fixture
def in_bucket(
    tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[Config, Config, str]:
    """The settings of a fine-tune on a disk, those of the same one in a bucket, and the bucket's name."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("gmd_ray.training.driver.fit", fit_in_process)
    here, there = make_config(tmp_path), make_config(tmp_path / "again")
    name = f"tune-{abs(hash(request.node.name))}"
    bucket = s3_server.make_bucket(name)
    for file in Path(there.out).rglob("*.*"):
        storage.write_bytes(f"{bucket}/run/{file.relative_to(there.out).as_posix()}", file.read_bytes())
    there.out = f"{bucket}/run"
    return here, there, name


def test_a_killed_fine_tune_goes_on_in_the_bucket_and_ends_with_the_same_bits(
    in_bucket: tuple[Config, Config, str], s3_server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    here, there, name = in_bucket
    undisturbed = Path(finetune(here, "adapted").path).read_bytes()
    with pytest.raises(KilledError):
        finetune(there, "adapted", Killer(10))
    folder = "run/finetune/adapted"
    states = [f"{folder}/train/step_{step:08d}/state.pt" for step in (4, 8)]
    assert [key for key in s3_server.keys(name) if key.endswith("state.pt")] == states

    done = finetune(there, "adapted")
    assert (done.path, done.resumed_from) == (f"{there.out}/finetune/adapted/student.pth", 8)
    assert storage.read_bytes(done.path) == undisturbed
    curve = (storage.read_bytes(f"{there.out}/finetune/adapted/curve.jsonl") or b"").splitlines()
    assert [json.loads(line)["step"] for line in curve] == [*range(2, 13, 2)], "each step once"

    # The last object is gone, and the student with it: the checkpoint before it gives the same bits.
    storage.remove_file(done.path)
    storage.remove_file(f"{there.out}/finetune/adapted/train/step_00000012/state.pt")
    assert finetune(there, "adapted").resumed_from == 8
    assert "step_00000012/state.pt is missing: resuming from step 8" in caplog.text
    assert storage.read_bytes(done.path) == undisturbed
    assert finetune(there, "adapted").resumed_from == 8, "finished"


def test_a_student_of_several_files_goes_from_the_bucket_into_it(
    in_bucket: tuple[Config, Config, str], s3_server: S3Server, tmp_path: Path
) -> None:
    _, there, name = in_bucket
    new_latent_student("ldm-tiny", tmp_path / "ldm-1.3b")
    for file in (tmp_path / "ldm-1.3b").rglob("*.*"):
        if file.is_file():
            inside = file.relative_to(tmp_path).as_posix()
            storage.write_bytes(f"s3://{name}/{inside}", file.read_bytes())
    there.student.path = f"s3://{name}/ldm-1.3b"
    there.training.patch, there.training.steps, there.training.log_every = 16, 2, 1
    done = finetune(there, "adapted")
    assert done.path == f"{there.out}/finetune/adapted/student", "a folder's name may have a dot"

    def files(folder: str) -> set[str]:
        return {key.removeprefix(folder) for key in s3_server.keys(name) if key.startswith(folder)}

    assert files("run/finetune/adapted/student/") == files("ldm-1.3b/")
    before, after = (_weights(path) for path in (there.student.path, done.path))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)


def _weights(path: str) -> dict[str, Any]:
    cfg = Config()
    cfg.student.path, cfg.student.device = path, "cpu"
    return dict(load_student(cfg.student).module.state_dict())

"""Step-distilled models are refused for inversion before their weights are read, and nothing else is."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import gmd_ray
from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.planning import Findings
from gmd_ray.planning.models import check_teacher
from gmd_ray.teachers import load_teacher
from gmd_ray.teachers.catalogue.distilled import step_distilled
from gmd_ray.teachers.catalogue.known import FLUX1
from tests.planning.conftest import config as planning_config

SCHNELL = {**FLUX1, "guidance_embeds": False}
STILL = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "use_dynamic_shifting": False}
"""The schedule of FLUX.1-schnell, of OpenFLUX.1 and of this package's own teachers."""
MOVING = {**STILL, "shift": 3.0, "use_dynamic_shifting": True}


def folder(path: Path, network: dict, schedule: dict, index: dict | None = None) -> Path:
    for part, found in (("transformer", network), ("vae", {"_class_name": "AutoencoderKL"})):
        (path / part).mkdir(parents=True)
        (path / part / "config.json").write_text(json.dumps(found))
    (path / "scheduler").mkdir()
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    if index is not None:
        (path / "model_index.json").write_text(json.dumps(index))
    return path


def says(path: Path | str, **settings: object) -> str | None:
    return step_distilled(TeacherConfig(path=str(path), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "schedule", "index", "why"),
    [
        (SCHNELL, STILL, None, "it has the config files of FLUX.1-schnell"),
        (SCHNELL, MOVING, None, None),
        (FLUX1, STILL, None, None),
        (FLUX1, MOVING, None, None),
        ({**SCHNELL, "num_single_layers": 8}, STILL, None, None),
        (FLUX1, MOVING, {"is_distilled": True}, "model_index.json says is_distilled: true"),
        (FLUX1, MOVING, {"is_distilled": False}, None),
        (FLUX1, {"_class_name": "FlowMatchLCMScheduler"}, None, "its scheduler is FlowMatchLCMScheduler"),
    ],
)
def test_what_the_config_files_say(
    tmp_path: Path, network: dict, schedule: dict, index: dict | None, why: str | None
) -> None:
    found = says(folder(tmp_path / "mine", network, schedule, index))
    assert (found is None) == (why is None)
    if why is not None and found is not None:
        assert why in found
        assert "\n" not in found
        assert "teacher.allow_distilled=true" in found


def test_the_name_tells_models_with_equal_files_apart(tmp_path: Path) -> None:
    """OpenFLUX.1 has the layout and the schedule of FLUX.1-schnell, and is not distilled."""
    assert says("black-forest-labs/FLUX.1-schnell") is not None
    assert says("black-forest-labs/FLUX.2-klein-4B") is not None
    assert says("black-forest-labs/FLUX.2-klein-base-4B") is None
    assert says("black-forest-labs/FLUX.1-dev") is None
    assert says("ostris/OpenFLUX.1") is None
    assert says(folder(tmp_path / "OpenFLUX.1", SCHNELL, STILL)) is None
    cached = tmp_path / "models--ostris--OpenFLUX.1" / "snapshots" / "d3928db"
    assert says(folder(cached, SCHNELL, STILL)) is None
    found = says(folder(tmp_path / "FLUX.1-schnell", SCHNELL, MOVING))
    assert found is not None
    assert "FLUX.1-schnell is step-distilled" in found


def test_only_an_inversion_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "mine", SCHNELL, STILL)
    assert says(path, method="sdedit") is None
    assert says(path, method="package:factory") is None
    assert says(path, allow_distilled=True) is None


@pytest.mark.parametrize("own", sorted((Path(gmd_ray.__file__).parent / "demo").glob("*/weights/teacher")), ids=str)
def test_the_teachers_of_the_package_are_not_refused(own: Path) -> None:
    assert says(own) is None


def test_the_teacher_is_refused_before_its_weights_are_read(flux_dir: Path, sd_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(flux_dir, tmp_path / "flux")
    (tmp_path / "flux" / "model_index.json").write_text('{"is_distilled": true}')
    for weights in (tmp_path / "flux" / "transformer").glob("*.safetensors"):
        weights.unlink()
    cfg = TeacherConfig(path=str(tmp_path / "flux"), device="cpu", injection=InjectionConfig(blocks="all"))
    with pytest.raises(ModelError, match="is_distilled: true, and its few large steps"):
        load_teacher(cfg)
    with pytest.raises(ModelError, match="cannot load the weights"):
        load_teacher(replace(cfg, allow_distilled=True))
    shutil.copytree(sd_dir, tmp_path / "sd")
    scheduler = tmp_path / "sd" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "_class_name": "LCMScheduler"}))
    with pytest.raises(ModelError, match="its scheduler is LCMScheduler"):
        load_teacher(TeacherConfig(path=str(tmp_path / "sd"), method="ddim", device="cpu"))


def test_the_preflight_refuses_it_too(tmp_path: Path) -> None:
    cfg = planning_config(tmp_path)
    cfg.teacher.path = str(folder(tmp_path / "mine", SCHNELL, STILL))
    found = Findings("adapt")
    check_teacher(found, cfg, "warning", weights=False)
    [error] = found.of("error")
    assert error.message.startswith(f"teacher.path={cfg.teacher.path}: it has the config files of FLUX.1-schnell")

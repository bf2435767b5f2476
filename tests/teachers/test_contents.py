"""The check that a teacher's directory is complete."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from gmd_ray.config import TeacherConfig
from gmd_ray.devices import choose_device
from gmd_ray.errors import ConfigError, ModelError
from gmd_ray.teachers import load_teacher, missing_parts
from gmd_ray.teachers.directory import model_directory
from tests.teachers.conftest import make_flux


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    return make_flux(tmp_path / "flux", autoencoder=True)


def missing(path: Path | str, **more: bool) -> list[str]:
    return missing_parts(TeacherConfig(path=str(path)), **more)


def test_a_whole_directory_lacks_nothing(flux: Path) -> None:
    assert missing(flux) == []
    assert missing_parts(TeacherConfig(path=None)) == []
    assert missing_parts(TeacherConfig(path="whatever/it is", method="mine:Teacher")) == [], "a plugin's own business"


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("transformer/config.json", "no transformer/config.json in it, nor unet/config.json"),
        ("vae/config.json", "no vae/config.json in it"),
        ("scheduler/scheduler_config.json", "no scheduler/scheduler_config.json in it"),
        ("transformer/diffusion_pytorch_model.safetensors", "no *.safetensors in transformer/"),
        ("vae/diffusion_pytorch_model.safetensors", "no *.safetensors in vae/"),
    ],
)
def test_each_part(gone: str, words: str, flux: Path) -> None:
    (flux / gone).unlink()
    [line] = missing(flux)
    assert line.startswith(f"teacher.path={flux}: ")
    assert words in line
    enough_for_a_plan = "safetensors" in gone or "scheduler" in gone
    assert missing(flux, weights=False) == ([] if enough_for_a_plan else [line])


def test_torn_weights_and_pointers(flux: Path) -> None:
    weights = flux / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    for content, words in (
        (whole[:-1], "is truncated"),
        (whole[:100], "is truncated"),
        (b"", "is truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "is a Git LFS pointer"),
        ((20).to_bytes(8, "little") + b"{" * 40, "is not a safetensors file"),
    ):
        weights.write_bytes(content)
        [line] = missing(flux)
        assert f"transformer/{weights.name} {words}" in line


def test_a_download_that_is_not_whole(flux: Path) -> None:
    folder = flux / "transformer"
    shutil.move(folder / "diffusion_pytorch_model.safetensors", folder / "model-00001-of-00003.safetensors")
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = {"weight_map": {f"weight{i}": name for i, name in enumerate(names)}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    [line] = missing(flux)
    assert f"2 of the 3 weight files of transformer/ are missing ({names[1]}, {names[2]})" in line


def test_a_hub_id_without_network_takes_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An unreachable hub is noticed at once; its own client would retry for 82 s."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    start = time.monotonic()
    [line] = missing("nobody/no-such-model")
    with pytest.raises(
        ModelError, match=r"in reach \(http://127.0.0.1:9 does not answer, and it is not in the hub's cache"
    ):
        model_directory("nobody/no-such-model")
    assert time.monotonic() - start < 60
    assert "http://127.0.0.1:9 does not answer" in line
    assert missing("/no/such/folder") == ["teacher.path=/no/such/folder: no such directory"]


def test_what_the_cache_has_of_a_hub_id_will_do(flux: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    snapshot = cache / "models--somebody--flux" / "snapshots" / "abc"
    shutil.copytree(flux, snapshot)
    (cache / "models--somebody--flux" / "refs").mkdir()
    (cache / "models--somebody--flux" / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert missing("somebody/flux") == []
    assert model_directory("somebody/flux") == snapshot
    (snapshot / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    [line] = missing("somebody/flux")
    assert "teacher.path=somebody/flux: no *.safetensors in transformer/" in line


def test_a_device_that_is_not_there_is_named(flux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(
            ConfigError, match=f"^teacher.device={name}: 0 CUDA devices are visible here; use auto or cpu"
        ):
            choose_device(name, "teacher.device")
    with pytest.raises(ConfigError, match=r"teacher\.device=cuda"):
        load_teacher(TeacherConfig(path=str(flux), device="cuda"))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_device("cuda:1", "teacher.device").index == 1
    assert choose_device("cpu", "teacher.device").type == "cpu"
    with pytest.raises(ConfigError, match=r"^student\.device=gpu: no such device; use auto, cpu, cuda or cuda:N"):
        choose_device("gpu", "student.device")

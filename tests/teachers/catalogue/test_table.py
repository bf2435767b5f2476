"""`gmd-ray ls teachers`: figures that are counted, and equal to those of the models themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gmd_ray.errors import ModelError
from gmd_ray.teachers.catalogue import table
from gmd_ray.teachers.catalogue.known import COMMERCIAL, KLEIN_4B, KNOWN, NON_COMMERCIAL, SUPPORTED, KnownTeacher
from gmd_ray.teachers.catalogue.table import teacher_rows, teacher_table


def known(name: str) -> KnownTeacher:
    [found] = [one for one in KNOWN if one.name == name]
    return found


def test_the_facts_are_whole() -> None:
    assert len({one.hub_id for one in KNOWN}) == len(KNOWN)
    for one in KNOWN:
        assert one.kind in (COMMERCIAL, NON_COMMERCIAL)
        assert one.source.startswith("https://")
        assert one.hub_id.count("/") == 1
        assert one.why_not or one.network["_class_name"] in SUPPORTED


def test_flux_dev_is_counted_by_the_cost_model() -> None:
    """11.9 billion parameters beside the autoencoder's 84 million, and 21.5 TFLOP: docs/decisions.md."""
    row = table._known(known("FLUX.1-dev"))
    assert row.parameters == 11_901_408_320 + 83_819_683
    assert row.flops == pytest.approx(21.50e12, rel=1e-3)
    assert row.planned
    assert row.memory is not None
    least, fastest = row.memory
    assert 15e9 < least < fastest < 80e9
    assert row.cells()[:6] == ("black-forest-labs/FLUX.1-dev", "inversion", "FLUX.1", "non-commercial", "12 G", "21.5")


def test_klein_is_a_teacher() -> None:
    row = table._known(known("FLUX.2-klein-base-4B"))
    assert row.parameters == 3_875_544_576 + 84_046_115
    assert row.flops == pytest.approx(10.17e12, rel=1e-3)
    assert row.planned
    assert row.memory is not None
    assert 8e9 < row.memory[0] <= row.memory[1] < 12e9
    assert (row.method, row.family, row.licence) == ("inversion", "FLUX.2", "commercial")
    assert table._known(known("FLUX.2-klein-4B")).method == "-"


def test_a_network_without_formulas_is_counted_on_the_meta_device() -> None:
    """The published file of klein's transformer has 7.75 GB in bfloat16; 859.5 million is Stable Diffusion 1.5's."""
    parameters, flops = table._on_meta(KLEIN_4B, 64)
    assert parameters == 3_875_544_576
    assert flops == pytest.approx(10.17e12, rel=1e-3)
    unet, _ = table._on_meta(known("stable-diffusion-v1-5").network, 64)
    assert unet == 859_520_964


def test_models_that_cannot_be_teachers_say_why() -> None:
    schnell = table._known(known("FLUX.1-schnell"))
    assert (schnell.method, schnell.licence) == ("-", "commercial")
    assert "step-distilled: cannot be inverted" in schnell.remark
    assert known("Chroma1-HD").why_not == "ChromaTransformer2DModel is not supported"
    assert "addition_embed_type" in known("stable-diffusion-xl-base-1.0").why_not


def test_directories_are_described_by_their_own_files(flux_dir: Path, sd_dir: Path) -> None:
    flux, unet = teacher_rows([str(flux_dir), str(sd_dir)])
    assert (flux.name, flux.method, flux.family, flux.licence) == (str(flux_dir), "inversion", "FLUX.1", "unknown")
    assert (unet.method, unet.family) == ("ddim", "Stable Diffusion")
    assert flux.planned
    assert not unet.planned, "there is no memory plan for a U-Net"
    for row, part in ((flux, "transformer"), (unet, "unet")):
        sizes = 0
        for folder in (part, "vae"):
            for file in Path(row.name, folder).glob("*.safetensors"):
                sizes += count(file)
        assert row.parameters == sizes


def count(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return sum(tensors.get_tensor(key).numel() for key in tensors.keys())  # noqa: SIM118 (not a dict)


def test_what_is_no_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        teacher_rows([str(tmp_path / "nowhere")])
    with pytest.raises(ModelError, match=r"no transformer/config.json with a vae/config.json"):
        teacher_rows([str(tmp_path)])


def test_an_unknown_class_has_a_row_without_figures(tmp_path: Path) -> None:
    for part, kind in (("transformer", "NoSuchTransformer"), ("vae", "AutoencoderKL")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps({"_class_name": kind}))
    lines = teacher_table([str(tmp_path)]).splitlines()
    assert lines[1].split()[1:4] == ["-", "NoSuchTransformer", "unknown"]
    assert "NoSuchTransformer is not supported" in lines[1]
    assert lines[-1].startswith("TFLOP: of one forward")

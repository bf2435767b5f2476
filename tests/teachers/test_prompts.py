"""Prompt embeddings: their sources, how often text encoders are loaded, and the fingerprints that follow."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from gmd_ray.config import InjectionConfig, TeacherConfig
from gmd_ray.errors import ModelError
from gmd_ray.teachers import encode_prompts, find_prompts, load_teacher
from gmd_ray.teachers.fingerprint import text_revision
from tests.teachers.text_encoders import write_sd_text_encoder, write_text_encoders


@pytest.fixture(scope="module")
def flux(flux_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX directory with text encoders and no table."""
    path = tmp_path_factory.mktemp("encoders") / "flux"
    shutil.copytree(flux_dir, path)
    (path / "prompt_embeddings.safetensors").unlink()
    write_text_encoders(path)
    return path


@pytest.fixture(scope="module")
def sd(sd_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoders") / "sd"
    shutil.copytree(sd_dir, path)
    (path / "prompt_embeddings.safetensors").unlink()
    write_sd_text_encoder(path)
    return path


def config(path: Path, **kwargs: object) -> TeacherConfig:
    settings = {"path": str(path), "steps": 2, "prompt": "ab ba", "max_sequence_length": 7,
                "injection": InjectionConfig(blocks="all", steps=1)}  # fmt: skip
    return TeacherConfig(**{**settings, **kwargs})  # type: ignore[arg-type]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that gets the name of each pipeline loaded from now on."""
    found: list[str] = []
    for kind in (FluxPipeline, StableDiffusionPipeline):
        load = kind.from_pretrained

        def counted(*args: object, load: object = load, name: str = kind.__name__, **kwargs: object) -> object:
            found.append(name)
            return load(*args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(kind, "from_pretrained", counted)
    return found


@pytest.mark.parametrize(("fixture", "name"), [("flux", "FluxPipeline"), ("sd", "StableDiffusionPipeline")])
def test_encoded_once_for_any_number_of_replicas(
    fixture: str, name: str, request: pytest.FixtureRequest, tmp_path: Path, loads: list[str]
) -> None:
    cfg = config(request.getfixturevalue(fixture))
    assert find_prompts(cfg, str(tmp_path)) is None
    handed = encode_prompts(cfg, str(tmp_path))
    assert loads == [name]
    assert find_prompts(cfg, str(tmp_path)) == handed
    assert encode_prompts(cfg, str(tmp_path)) == handed
    replicas = [load_teacher(handed) for _ in range(3)]
    assert loads == [name], "no replica loads an encoder"
    alone = load_teacher(cfg)
    assert len(loads) == 2
    for replica in replicas:
        assert replica.fingerprint == alone.fingerprint
        assert torch.equal(replica.prompt.embeds, alone.prompt.embeds)  # type: ignore[attr-defined]
        assert torch.equal(replica.prompt.pooled, alone.prompt.pooled)  # type: ignore[attr-defined]
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(replicas[0].project(x, ["a"]), alone.project(x, ["a"]))


def test_stable_diffusions_are_the_pipelines(sd: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(sd, unet=None, vae=None)
    teacher = load_teacher(config(sd, max_sequence_length=512))
    for prompt, found in (("ab ba", teacher.prompt), ("", teacher.inversion_prompt)):  # type: ignore[attr-defined]
        tokens = pipe.tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.no_grad():
            expected = pipe.text_encoder(tokens).last_hidden_state[0]
        assert found.embeds.shape == (77, 24)
        torch.testing.assert_close(found.embeds, expected)


def test_the_file_is_keyed_by_encoders_length_and_text(flux: Path, tmp_path: Path) -> None:
    cfg = config(flux)
    url = encode_prompts(cfg, str(tmp_path), ["a: b"]).prompt_embeddings
    revision = text_revision(flux)
    assert url == f"{tmp_path}/{revision}.safetensors"
    keys = [f"{revision}:7:{text}.{part}" for text in ("", "ab ba", "a: b") for part in ("prompt_embeds", "pooled")]
    assert set(load_file(url)) == set(keys)
    assert load_file(url)[f"{revision}:7:ab ba.prompt_embeds"].shape == (7, 24)
    # Another length is encoded anew, and what was there stays.
    longer = replace(cfg, max_sequence_length=9, prompt="a: b")
    assert find_prompts(longer, str(tmp_path)) is None
    assert encode_prompts(longer, str(tmp_path)).prompt_embeddings == url
    assert load_file(url)[f"{revision}:9:a: b.prompt_embeds"].shape == (9, 24)
    assert set(keys) < set(load_file(url))
    assert find_prompts(replace(cfg, prompt="a: b"), str(tmp_path)) is not None


def test_other_encoders_are_another_revision(flux: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(flux, other)
    assert text_revision(other) == text_revision(flux)
    weights = other / "text_encoder_2" / "model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    assert text_revision(other) != text_revision(flux)
    out = str(tmp_path / "prompts")
    encode_prompts(config(flux), out)
    assert find_prompts(config(other), out) is None
    assert load_teacher(config(other)).fingerprint != load_teacher(config(flux)).fingerprint


def test_a_url_will_do(flux: Path) -> None:
    handed = encode_prompts(config(flux), "memory://runs/one/prompts")
    assert handed.prompt_embeddings is not None
    assert handed.prompt_embeddings.startswith("memory://runs/one/prompts/")
    assert find_prompts(config(flux), "memory://runs/one/prompts") == handed
    assert load_teacher(handed).fingerprint == load_teacher(config(flux)).fingerprint


def test_a_table_beside_the_weights_wins(flux: Path, flux_dir: Path, tmp_path: Path, loads: list[str]) -> None:
    path = tmp_path / "flux"
    shutil.copytree(flux, path)
    # The table's length is 5.
    handed = encode_prompts(config(path, prompt="", max_sequence_length=5), str(tmp_path / "prompts"))
    before = load_teacher(handed)
    loads.clear()
    shutil.copy(flux_dir / "prompt_embeddings.safetensors", path)
    teacher = load_teacher(handed)
    table = load_file(path / "prompt_embeddings.safetensors")
    assert torch.equal(teacher.prompt.embeds, table[".prompt_embeds"])  # type: ignore[attr-defined]
    assert teacher.fingerprint != before.fingerprint
    cfg = config(path, prompt="a sharp photo", max_sequence_length=5)
    assert find_prompts(cfg, str(tmp_path / "none")) is cfg
    assert encode_prompts(cfg, str(tmp_path / "none")) is cfg
    assert not (tmp_path / "none").exists()
    assert not loads


def test_a_table_of_another_length_gives_way_to_the_encoders(
    flux: Path, flux_dir: Path, tmp_path: Path, loads: list[str]
) -> None:
    path, bare = tmp_path / "flux", tmp_path / "bare"
    shutil.copytree(flux, path)
    shutil.copy(flux_dir / "prompt_embeddings.safetensors", path)
    shutil.copytree(path, bare, ignore=shutil.ignore_patterns("text_encoder*", "tokenizer*"))
    cfg = config(path, prompt="")
    assert find_prompts(cfg, str(tmp_path / "prompts")) is None
    teacher = load_teacher(cfg)
    assert loads == ["FluxPipeline"]
    assert teacher.prompt.embeds.shape == (7, 24)  # type: ignore[attr-defined]
    assert teacher.fingerprint == load_teacher(config(flux, prompt="")).fingerprint
    loads.clear()
    # Without encoders the table counts, at its own length; embeddings handed over at the right length come first.
    there = config(bare, prompt="")
    assert find_prompts(there, "/nowhere") is there
    assert load_teacher(there).prompt.embeds.shape == (5, 24)  # type: ignore[attr-defined]
    assert not loads
    handed = encode_prompts(cfg, str(tmp_path / "prompts"))
    assert load_teacher(replace(handed, path=str(bare))).fingerprint == teacher.fingerprint


def test_embeddings_of_other_encoders_are_refused(flux: Path, tmp_path: Path) -> None:
    other, bare = tmp_path / "other", tmp_path / "bare"
    shutil.copytree(flux, other)
    weights = other / "text_encoder_2" / "model.safetensors"
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    handed = encode_prompts(config(flux), str(tmp_path / "prompts"))
    there = replace(handed, path=str(other))
    message = rf"embeddings of other text encoders \({text_revision(flux)}\) than .*\({text_revision(other)}\)"
    for attempt in (lambda: load_teacher(there), lambda: find_prompts(there, str(tmp_path))):
        with pytest.raises(ModelError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    # From a file with both, each teacher takes its own; without encoders it is not known which are meant.
    both = str(tmp_path / "both.safetensors")
    theirs = encode_prompts(config(other), str(tmp_path / "prompts"))
    save_file(load_file(handed.prompt_embeddings or "") | load_file(theirs.prompt_embeddings or ""), both)
    for path in (flux, other):
        cfg = config(path, prompt_embeddings=both)
        assert find_prompts(cfg, "/nowhere") is cfg
        assert load_teacher(cfg).fingerprint == load_teacher(config(path)).fingerprint
    shutil.copytree(flux, bare, ignore=shutil.ignore_patterns("text_encoder*", "tokenizer*"))
    with pytest.raises(ModelError, match="embeddings of 2 text encoders") as caught:
        load_teacher(config(bare, prompt_embeddings=both))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("fixture", "length"), [("flux", 7), ("sd", 512)])
def test_a_hub_is_not_asked_where_a_file_has_every_prompt(
    fixture: str, length: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    local = config(request.getfixturevalue(fixture), max_sequence_length=length)
    file = encode_prompts(local, str(tmp_path)).prompt_embeddings
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    cfg = replace(local, path="somebody/model", prompt_embeddings=file)
    assert find_prompts(cfg, "/nowhere") is cfg
    assert find_prompts(replace(cfg, prompt="another"), "/nowhere") is None
    longer = replace(cfg, max_sequence_length=9)
    assert find_prompts(longer, "/nowhere") is (None if fixture == "flux" else longer)  # CLIP has one length


def test_what_a_file_has_is_not_encoded_again(flux: Path, tmp_path: Path, loads: list[str]) -> None:
    handed = encode_prompts(config(flux), str(tmp_path / "first"))
    loads.clear()
    assert encode_prompts(handed, str(tmp_path / "second")) is handed
    assert not loads
    assert not (tmp_path / "second").exists()
    more = encode_prompts(handed, str(tmp_path / "second"), ["a: b"])
    assert loads == ["FluxPipeline"]
    assert more.prompt_embeddings == f"{tmp_path}/second/{text_revision(flux)}.safetensors"


def test_encoders_may_be_absent_where_embeddings_are_handed_over(flux: Path, tmp_path: Path) -> None:
    """A copy without text encoders, as on a GPU node that downloaded the model's folders alone."""
    handed = encode_prompts(config(flux), str(tmp_path / "prompts"))
    bare = tmp_path / "bare"
    shutil.copytree(flux, bare, ignore=shutil.ignore_patterns("text_encoder*", "tokenizer*"))
    there = replace(handed, path=str(bare))
    assert find_prompts(there, "/nowhere") is there
    assert load_teacher(there).fingerprint == load_teacher(handed).fingerprint


@pytest.mark.parametrize("absent", ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
def test_missing_encoders_are_one_line(flux: Path, tmp_path: Path, absent: str) -> None:
    path = tmp_path / "flux"
    shutil.copytree(flux, path)
    shutil.rmtree(path / absent)
    for attempt in (
        lambda: load_teacher(config(path)),
        lambda: find_prompts(config(path), str(tmp_path)),
        lambda: encode_prompts(config(path), str(tmp_path)),
    ):
        with pytest.raises(ModelError, match=rf"there is no {absent}/ to encode it with") as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_one_line(flux: Path, tmp_path: Path) -> None:
    cfg = config(flux, prompt_embeddings=str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(ModelError, match=r"no such file; `gmd-ray encode-prompts` makes it"):
        load_teacher(cfg)
    (tmp_path / "nowhere.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_teacher(cfg)
    save_file({"x.prompt_embeds": torch.zeros(1)}, tmp_path / "nowhere.safetensors")
    with pytest.raises(ModelError, match="its keys are not"):
        load_teacher(cfg)


def test_a_hub_id_brings_only_the_folders_that_are_needed(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[set[str]] = []

    def snapshot_download(path: str, allow_patterns: list[str], ignore_patterns: list[str], **_: bool) -> str:
        assert path == "somebody/flux"
        assert "*.bin" in ignore_patterns
        asked.append({pattern.removesuffix("/*") for pattern in allow_patterns if pattern.endswith("/*")})
        return str(flux)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    cfg = config(Path("somebody/flux"))
    assert find_prompts(cfg, str(tmp_path)) is None, "not looked up: that is for the machine that encodes"
    assert not asked
    handed = encode_prompts(cfg, str(tmp_path))
    assert asked == [{"text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}]
    asked.clear()
    teacher = load_teacher(handed)
    assert all(folders == {"transformer", "unet", "vae", "scheduler"} for folders in asked)
    assert asked
    assert teacher.fingerprint == load_teacher(config(flux)).fingerprint

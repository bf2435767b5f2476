"""The presets that ship: they load, they say why, and base.yaml is the schema."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import gmd_ray.config
from gmd_ray.config import Config
from gmd_ray.config.load import load_config, preset_names, require, resolved
from gmd_ray.config.rules import flatten
from gmd_ray.errors import ConfigError
from gmd_ray.images.degradations import make_degradation

FOLDER = Path(gmd_ray.config.__file__).parent / "presets"
EXPERIMENTS = ["deblur_reds", "deblur_realblur", "sr_weak_to_strong", "sr_dped"]


def uncommented_keys(text: str) -> list[str]:
    """Keys of a YAML text with no comment on their own line or the one above."""
    lines = text.splitlines()
    bare: list[str] = []

    def visit(node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                at = key.start_mark.line
                above = lines[at - 1].strip() if at else ""
                if "#" not in lines[at] and not above.startswith("#"):
                    bare.append(key.value)
                visit(value)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item)

    visit(yaml.compose(text))
    return bare


def test_the_experiments_of_the_design_are_there() -> None:
    assert {"base", "demo", *EXPERIMENTS} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_keeps_to_the_rules(name: str) -> None:
    cfg = load_config([f"preset={name}"])
    assert cfg.out.endswith(f"runs/{'default' if name == 'base' else name}")


@pytest.mark.parametrize("name", ["base", *EXPERIMENTS])
def test_every_key_is_commented(name: str) -> None:
    assert uncommented_keys((FOLDER / f"{name}.yaml").read_text()) == []


def test_an_uncommented_key_is_seen() -> None:
    assert uncommented_keys("# why\na: 1\nb: 2\nc:  # why\n  d: {e: 1}\n") == ["b", "d", "e"]


def test_base_holds_every_setting_with_its_default() -> None:
    plain = yaml.safe_load((FOLDER / "base.yaml").read_text())
    expected = resolved(Config())
    for section, key in (("training", "betas"), ("teacher", "true_cfg_interval")):
        expected[section][key] = list(expected[section][key])
    assert plain == expected


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_follow_the_paper_and_ask_for_data_alone(name: str) -> None:
    cfg = load_config([f"preset={name}"])
    assert (cfg.training.steps, cfg.training.batch_size, cfg.training.source_ratio) == (20_000, 32, 0.9)
    assert (cfg.scorer.metric, cfg.scorer.threshold) == ("nima", 4.2)
    with pytest.raises(ConfigError) as caught:
        require(cfg, "adapt")
    asked = {part.split("=")[0].strip() for part in str(caught.value).removeprefix("adapt needs ").split(", ")}
    degrades = name.startswith("sr_")
    assert asked == {"target.path", "student.path", "source.hq"} | (set() if degrades else {"source.lq"})
    text = (FOLDER / f"{name}.yaml").read_text()
    usage = next(line for line in text.splitlines() if "gmd-ray adapt" in line)
    assert f"preset={name}" in usage
    assert all(f"{key}=..." in usage for key in asked)


def test_super_resolution_degrades_its_source_at_its_scale() -> None:
    """DESIGN, section 7: weak x4, and Real-ESRGAN's at x2."""
    found = {}
    for name in ("sr_weak_to_strong", "sr_dped"):
        source = load_config([f"preset={name}"]).source
        found[name] = source.degradation, make_degradation(source.degradation or "", source.degradation_args).scale
    assert found == {"sr_weak_to_strong": ("weak", 4), "sr_dped": ("realesrgan", 2)}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_changed_value_says_whose_it_is(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    for line in text.splitlines():
        key, _, value = line.partition("#")[0].partition(":")
        if key.strip() and value.strip() not in ("", "null"):
            assert "paper" in line or "ours" in line, line


def test_experiments_run_on_gpus() -> None:
    base = dict(flatten(load_config([])))
    for name in EXPERIMENTS:
        changed = {key for key, value in flatten(load_config([f"preset={name}"])) if value != base[key]}
        assert {"teacher.path", "training.use_gpu", "teacher.pool.num_gpus", "tracking.model"} <= changed

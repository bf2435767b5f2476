"""The presets that come with the package: they load, and every value says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import gmd_ray.config
from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.config.keys import PUBLISHED, flatten
from gmd_ray.config.load import load_config, preset_heading, preset_names, require
from gmd_ray.errors import ConfigError, DataError
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.images.layouts import SETS
from gmd_ray.images.listing import list_images
from gmd_ray.images.sets.inventory import data_sets
from gmd_ray.images.sets.listed import Listed
from tests.config.published import at_a_hundredth, fill

FOLDER = Path(gmd_ray.config.__file__).parent / "presets"
EXPERIMENTS = ["deblur_reds", "deblur_realblur", "sr_weak_to_strong", "sr_dped"]


def inventory(cfg: Config) -> list[Listed]:
    """Every data set of a run, listed."""
    return [listing() for listing in data_sets(cfg).values()]


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
    assert {"base", "demo", "toy", *EXPERIMENTS} <= set(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_keeps_to_the_rules(name: str) -> None:
    cfg = load_config([f"preset={name}"])
    assert cfg.out.endswith(f"runs/{'default' if name == 'base' else name}")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_key_is_commented(name: str) -> None:
    assert uncommented_keys((FOLDER / f"{name}.yaml").read_text()) == []


def test_an_uncommented_key_is_seen() -> None:
    assert uncommented_keys("# why\na: 1\nb: 2\nc:  # why\n  d: {e: 1}\n") == ["b", "d", "e"]


def test_the_base_preset_is_the_defaults() -> None:
    assert load_config(["preset=base"]) == load_config([])
    assert "defaults" not in preset_heading("toy")
    assert "default" in preset_heading("base")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_follow_the_paper_and_ask_for_data_alone(name: str) -> None:
    cfg = load_config([f"preset={name}"])
    assert (cfg.training.steps, cfg.training.batch_size, cfg.training.source_ratio) == (20_000, 32, 0.9)
    assert (cfg.scorer.metric, cfg.scorer.threshold) == ("nima", 4.2)
    with pytest.raises(ConfigError) as caught:
        require(cfg, "adapt")
    asked = set(re.findall(r"([\w.]+)=\.\.\.", str(caught.value)))
    assert asked == {"student.path", "data.root"}
    text = (FOLDER / f"{name}.yaml").read_text()
    usage = next(line for line in text.splitlines() if "gmd-ray adapt" in line)
    assert f"preset={name}" in usage
    assert all(f"{key}=..." in usage for key in asked)


def test_super_resolution_degrades_its_source_at_its_scale() -> None:
    """The weak degradation at x4, from files, and Real-ESRGAN's at x2."""
    weak, dped = (load_config([f"preset={name}", "data.root=/"]).source for name in ("sr_weak_to_strong", "sr_dped"))
    assert (weak.hq, weak.lq) == ("frozen/div2k_weak_x4/hq@/", "frozen/div2k_weak_x4/lq@/")
    assert "--preset weak --crops 30000" in SETS["frozen/div2k_weak_x4/lq"].hint
    assert make_degradation("weak").scale == 4
    assert (dped.hq, dped.lq, dped.degradation) == ("frozen/div2k_realesrgan_x2/hq@/", None, "realesrgan")
    assert make_degradation("realesrgan", dped.degradation_args).scale == 2


# Preset -> images of (source, target, target test, source test), as the paper gives them.
COUNTS = {
    "deblur_reds": (2103, 6000, 300, 1111),
    "deblur_realblur": (2103, 3758, 980, 1111),
    "sr_weak_to_strong": (30000, 6000, 3000, 3000),
    "sr_dped": (30000, 5614, 113, 100),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_sets_and_limits_give_the_numbers_of_the_paper(name: str) -> None:
    cfg = load_config([f"preset={name}", "data.root=/"])
    found = []
    for path, limit in (
        (cfg.source.hq, cfg.source.limit),
        (cfg.target.path, cfg.target.limit),
        (cfg.evaluation.target_lq, None),
        (cfg.evaluation.source_hq, None),
    ):
        count = SETS[str(path).partition("@")[0]].count or 0
        found.append(min(count, limit or count))
    assert tuple(found) == COUNTS[name]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_data_root_is_all_that_an_experiments_data_need(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_a_hundredth(monkeypatch)
    cfg = load_config([f"preset={name}", f"data.root={tmp_path}"])
    for section in (cfg.source, cfg.target):
        section.limit = section.limit // 100 if section.limit else None
    values = dict(flatten(cfg))
    names = {values[key].partition("@")[0] for key in PUBLISHED if values[key]}
    with pytest.raises(DataError) as caught:
        inventory(cfg)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    fill(tmp_path, names)
    found = inventory(cfg)
    assert [listed.role for listed in found] == ["source", "target", "target test", "source test"]
    assert tuple(listed.count for listed in found) == tuple(count // 100 for count in COUNTS[name])
    assert (found[2].hq is None) == (name == "sr_dped")
    assert str(found[0]).startswith(f"source: {COUNTS[name][0] // 100} pairs, ")

    first = Path(list_images(cfg.target.path or "")[0].uri)
    first.unlink()
    with pytest.raises(DataError) as caught:
        inventory(cfg)
    assert "\n" not in str(caught.value)


def test_paths_of_ones_own_take_the_place_of_a_set(tmp_path: Path) -> None:
    for side in ("hq", "lq"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "a.png").touch()
    own = [f"source.hq={tmp_path}/hq", f"source.lq={tmp_path}/lq", f"target.path={tmp_path}/lq"]
    tests = [f"evaluation.{key}=null" for key in ("target_lq", "target_hq", "source_lq", "source_hq")]
    cfg = load_config(["preset=deblur_reds", *own, *tests])
    assert [(listed.role, listed.count) for listed in inventory(cfg)] == [("source", 1), ("target", 1)]


def test_ground_truth_is_listed_before_it_is_paid_for(tmp_path: Path) -> None:
    for side in ("photos", "truth"):
        (tmp_path / side / "sub").mkdir(parents=True)
        for name in ("a", "b", "sub/a"):
            (tmp_path / side / f"{name}.{'png' if side == 'truth' else 'jpg'}").touch()
    truth = f"{tmp_path}/truth"
    settings = [f"target.path={tmp_path}/photos", f"training.supervised_hq={truth}", f"evaluation.pairs_hq={truth}"]
    (tmp_path / "truth" / "of another.png").touch()
    listed = inventory(load_config([*settings, "controls=[supervised]"]))
    assert [(one.role, one.count) for one in listed] == [
        ("target", 3),
        ("target's truth", 3),
        ("truth for the report", 4),
    ]
    assert str(listed[1]) == f"target's truth: 3 pairs, {tmp_path}/photos and {truth}"
    assert str(listed[2]) == f"truth for the report: 4 images, {truth}"
    (tmp_path / "truth" / "sub" / "a.png").unlink()
    assert len(inventory(load_config(settings))) == 2
    with pytest.raises(DataError, match=r"supervised_hq=.* 1 of 3 photos have no ground truth there \(sub/a\.jpg\)$"):
        inventory(load_config([*settings, "controls=[supervised]"]))


def test_an_unknown_set_is_told_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "target.path=reds/train/blurr@/"]) == 2
    assert "did you mean 'reds/train/blur'" in capsys.readouterr().err
    assert main(["config", "preset=deblur_reds"]) == 0


def test_a_root_is_checked_and_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^data\.root=/no/where: no such file or folder$"):
        load_config(["preset=deblur_reds", "data.root=/no/where"])
    with pytest.raises(ConfigError, match=r"give the folder of the data sets, data\.root"):
        inventory(load_config(["preset=deblur_reds"]))
    monkeypatch.chdir(tmp_path)
    assert load_config(["preset=deblur_reds", "data.root=."]).target.path == f"reds/train/blur@{tmp_path}"
    assert load_config(["target.path=reds/train/blur@."]).target.path == f"reds/train/blur@{tmp_path}"
    truth = "training.supervised_hq=reds/train/sharp@"
    cfg = load_config([truth, "data.root=."])
    assert cfg.training.supervised_hq == f"reds/train/sharp@{tmp_path}"
    with pytest.raises(ConfigError, match=r"data\.root=.*that training\.supervised_hq name"):
        require(load_config([truth, "student.path=.", "source.hq=.", "source.lq=."]), "finetune")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_changed_value_says_whose_it_is(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    for line in text.splitlines():
        key, _, value = line.partition("#")[0].partition(":")
        if key.strip() and value.strip() not in ("", "null"):
            assert re.search(r"#.*\b(paper|ours)\b", line), line


def test_denoise_polyu_asks_for_data_and_student_alone_and_its_folders_are_the_crop_makers(tmp_path: Path) -> None:
    cfg = load_config(["preset=denoise_polyu"])
    with pytest.raises(ConfigError) as caught:
        require(cfg, "adapt")
    assert set(re.findall(r"([\w.]+)=\.\.\.", str(caught.value))) == {"student.path", "data.root"}
    cfg = load_config(["preset=denoise_polyu", f"data.root={tmp_path}"])
    with pytest.raises(DataError, match=r"make them with `python -m gmd_ray\.images\.sets\.polyu ROOT`"):
        inventory(cfg)
    values = dict(flatten(cfg))
    fill(tmp_path, {values[key].partition("@")[0] for key in PUBLISHED if values[key]})
    assert [(listed.role, listed.count) for listed in inventory(cfg)] == [
        ("source", 300),
        ("target", 230),
        ("target's truth", 230),
        ("target test", 48),
        ("source test", 24),
        ("truth for the report", 230),
    ]
    assert cfg.controls == ["source_only", "median", "supervised"]
    text = (FOLDER / "denoise_polyu.yaml").read_text()
    assert uncommented_keys(text) == []
    for line in text.splitlines():
        key, _, value = line.partition("#")[0].partition(":")
        if key.strip() and value.strip() not in ("", "null"):
            assert re.search(r"#.*\b(paper|ours)\b", line), line


def test_experiments_run_on_gpus() -> None:
    base = dict(flatten(load_config([])))
    for name in EXPERIMENTS:
        changed = {key for key, value in flatten(load_config([f"preset={name}"])) if value != base[key]}
        assert {"teacher.path", "training.use_gpu", "teacher.pool.num_gpus", "tracking.model"} <= changed

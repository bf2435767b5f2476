"""The declarations of the settings: each is described and bounded, and `config --explain` prints all of them."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

import gmd_ray.config
from gmd_ray.cli import main
from gmd_ray.config import Config, PromotionGate
from gmd_ray.config.explain import explain
from gmd_ray.config.keys import PATHS, PUBLISHED, SETTINGS, flatten
from gmd_ray.config.load import load_config
from gmd_ray.config.sections.setting import Rule, rule_of, setting, types_of
from gmd_ray.config.validate import validate
from gmd_ray.errors import ConfigError

FOLDER = Path(gmd_ray.config.__file__).parent


def declared() -> list[tuple[str, Any, Any, Rule]]:
    """(key, type, default, rule) of every setting, and of every field of a promotion gate."""
    found = [(one.key, one.type, one.default, one.rule) for one in SETTINGS.values()]
    gate = PromotionGate()
    for item in dataclasses.fields(gate):
        found.append((f"gate.{item.name}", types_of(PromotionGate)[item.name], getattr(gate, item.name), rule_of(item)))
    return found


def is_number(kind: Any) -> bool:
    """Tell whether a type holds numbers, in lists and tuples too. Free mappings are left out."""
    if typing.get_origin(kind) is dict:
        return False
    return kind in (int, float) or any(is_number(arg) for arg in typing.get_args(kind))


@pytest.mark.parametrize(("key", "kind", "default", "rule"), declared(), ids=[one[0] for one in declared()])
def test_every_setting_is_described_and_bounded(key: str, kind: Any, default: Any, rule: Rule) -> None:
    assert rule.help.endswith(".")
    assert rule.help[0] != " "
    assert "  " not in rule.help
    assert bool(rule.interval) == is_number(kind), key
    if rule.choices and default is not None:
        assert set(default if isinstance(default, list) else [default]) <= set(rule.choices)


def test_the_keys_are_the_dataclasses() -> None:
    assert dict(flatten(Config())) == {key: one.default for key, one in SETTINGS.items()}
    assert set(PUBLISHED) < set(PATHS) < set(SETTINGS)
    assert SETTINGS["teacher.pool.batch_size"].default == 4
    assert SETTINGS["student.pool.batch_size"].default == 8


def test_no_two_configs_share_a_list_or_mapping() -> None:
    for one, other in ((Config(), Config()), (load_config(["preset=toy"]), load_config(["preset=toy"]))):
        mutable = [
            (a, b) for (_, a), (_, b) in zip(flatten(one), flatten(other), strict=True) if type(a) in (list, dict)
        ]
        assert len(mutable) > 10
        assert not any(a is b for a, b in mutable)
        assert one.tracking.gates[0] is not other.tracking.gates[0]
    load_config([]).evaluation.metrics.append("x")
    assert "x" not in load_config([]).evaluation.metrics


def test_the_defaults_keep_to_the_rules() -> None:
    validate(Config())


@dataclasses.dataclass
class Example:
    low: float = setting(1, "At least.", ge=0, lt=2)
    high: float = setting(1, "Above.", gt=0, le=2)
    any: float = setting(1, "Finite.", gt=float("-inf"))


@pytest.mark.parametrize(
    ("name", "interval", "inside", "outside"),
    [
        ("low", "[0, 2)", [0, 1.99], [-0.01, 2, float("nan")]),
        ("high", "(0, 2]", [0.01, 2], [0, 2.01, float("inf")]),
        ("any", "(-inf, inf)", [-1e300, 0, 1e300], [float("nan"), float("inf"), float("-inf")]),
    ],
)
def test_a_range(name: str, interval: str, inside: list[float], outside: list[float]) -> None:
    (rule,) = [rule_of(item) for item in dataclasses.fields(Example) if item.name == name]
    assert rule.interval == interval
    assert all(rule.inside(value) for value in inside)
    assert not any(rule.inside(value) for value in outside)


def test_what_is_explained_is_a_preset_that_gives_the_defaults(tmp_path: Path) -> None:
    text = explain()
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert load_config([f"preset={file}"]) == load_config([])
    assert set(keys_of(yaml.safe_load(text))) == set(SETTINGS)
    assert max(len(line) for line in text.splitlines()) <= 120


def keys_of(node: Any, head: str = "") -> list[str]:
    """The keys of the settings in a plain mapping as YAML gives it."""
    found = []
    for name, value in node.items():
        key = f"{head}{name}"
        found += [key] if key in SETTINGS else keys_of(value, f"{key}.")
    return found


def test_every_setting_is_explained_above_its_line() -> None:
    lines = explain().splitlines()
    bare = [line for above, line in itertools.pairwise(lines) if is_entry(line) and "#" not in above]
    assert bare == []
    assert [is_entry(line) for line in ("  tile: 0", "  # tile: 0", "    - {metric: psnr}")] == [True, False, False]


def is_entry(line: str) -> bool:
    return line.lstrip()[:1].isalpha()


@pytest.mark.parametrize("key", ["teacher", "teacher.injection", "training.betas", "tracking", "student.pool.min"])
def test_a_part_is_explained_and_loads(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--explain", key]) == 0
    text = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(text)
    assert load_config([f"preset={tmp_path / 'mine.yaml'}"]) == load_config([])
    explained = keys_of(yaml.safe_load(text))
    assert explained == [one for one in SETTINGS if one == key or one.startswith(f"{key}.")]


def test_the_values_that_a_setting_may_have_stand_on_its_line() -> None:
    lines = [line.strip() for line in explain().splitlines()]
    for line in (
        "max_sequence_length: 512  # whole number in [1, 512]",
        "strength: 1.0  # number in (0, 1]",
        "initial: null  # whole number in [1, inf), or null",
        "betas: [0.9, 0.99]  # list of 2 numbers in [0, 1)",
        "milestones: []  # list of whole numbers in [1, inf)",
        "solver: euler  # one of euler, midpoint, fireflow",
        "controls: []  # list of any of source_only, median, supervised",
        "resources: {}  # mapping of names to numbers",
        "flip: true  # true or false",
    ):
        assert line in lines


def test_unknown_parts_and_settings_beside_it_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"^--explain teacher\.til: no such .*; did you mean 'teacher\.tile'\?$"):
        explain("teacher.til")
    for words in (["--explain", "teacher", "preset=toy"], ["--explain", "preset=toy"]):
        assert main(["config", *words]) == 2
        assert "prints the defaults" in capsys.readouterr().err


def test_every_setting_that_a_preset_names_exists() -> None:
    """`load_config` refuses others; this reads the files without it."""
    files = sorted((FOLDER / "presets").glob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        given = keys_of(yaml.safe_load(file.read_text()))
        assert set(given) <= set(SETTINGS), file.name
        assert len(given) > 10


def test_each_teacher_preset_is_described_where_it_is_named() -> None:
    names = yaml.safe_load((FOLDER / "teacher_presets.yaml").read_text())
    described = SETTINGS["teacher.preset"].rule.help
    assert all(f" {name}" in described for name in names)

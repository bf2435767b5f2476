"""What the README tells a person to type, typed: bash takes the words apart, the program takes the words."""

from __future__ import annotations

import contextlib
import re
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from gmd_ray.cli import parse
from gmd_ray.config import Config
from gmd_ray.config.keys import flatten
from gmd_ray.config.load import load_config, require
from gmd_ray.config.requirements import NEEDED
from gmd_ray.errors import ConfigError
from gmd_ray.verbs import folders as folder_verbs

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = ("gmd-ray", "make", "ray", "python", "mlflow", "pip")

FRAGMENTS = {
    "scorer.fidelity_bound=28": "needs a metric; set scorer.fidelity",
    "training.min_workers=2": "more than training.num_workers=1",
    "training.export=best": "set training.validate_every too",
    "training.validate_every=1000 evaluation.source_hq=...": "set evaluation.source_lq, or source.degradation",
    "controls=[source_only,median,supervised]": "set training.supervised_hq",
}
"""Settings that stand in a sentence by themselves, and what they want beside them."""
OTHERS_OPTIONS = {"--working-dir", "--runtime-env-json", "--dashboard-host", "--metrics-export-port"}


def blocks() -> list[str]:
    return [found[2] for found in FENCE.finditer(README) if found[1] == "bash"]


def spans() -> list[str]:
    """Code within sentences, as it is seen: a line break is a space."""
    text = FENCE.sub("", README)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs that write down the words they are given."""
    path = tmp_path_factory.mktemp("programs")
    for name in COMMANDS:
        program = path / name
        program.write_text('#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" >> "$TYPED"\nprintf "\\1" >> "$TYPED"\n')
        program.chmod(0o755)
    return path


def typed(script: str, folder: Path) -> list[list[str]]:
    """The commands that bash makes of a script: the name of each, and its words."""
    told = folder / "typed"
    told.write_text("")
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", script],
        env={"PATH": str(folder), "TYPED": str(told), "HOME": "/home/me"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), script
    return [command.split("\0")[:-1] for command in told.read_text().split("\1")[:-1]]


def accept(words: list[str]) -> Config | None:
    """Take a command as the program does, up to the paths that must exist.

    Raises:
        ConfigError, SystemExit: it is refused.
    """
    args = parse([word for word in words if word != "..."])
    if not hasattr(args, "settings"):
        return None
    given = folder_verbs.restore_settings(args) if args.verb == "restore" else args.settings
    cfg = load_config(given, check_paths=False)
    if args.verb in NEEDED and "..." not in words and given:
        require(cfg, args.verb)
    return cfg


def run(command: list[str]) -> None:
    name, *words = command
    if name == "gmd-ray":
        accept(words)
    elif name == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif name == "ray" and words[:2] == ["job", "submit"]:
        script, *rest = words[words.index("python") + 1 :] if "python" in words else ["jobs/adapt.py"]
        assert (ROOT / script).is_file()
        accept([Path(script).stem.replace("_", "-"), *rest])
    elif name == "python":
        assert words[0] == "-m"
        assert find_spec(words[1]) is not None


@pytest.mark.parametrize("script", blocks())
def test_a_block_is_taken_as_it_is_printed(script: str, folder: Path) -> None:
    commands = typed(script, folder)
    assert commands
    for command in commands:
        run(command)


def test_the_words_arrive(folder: Path) -> None:
    """What the README's own examples mean, so that a test of the test is not empty."""
    (command,) = typed("gmd-ray config source.hq=hq source.lq=lq source.lq_template='{}x4'", folder)
    cfg = accept(command[1:])
    assert cfg is not None
    assert cfg.source.lq_template == "{}x4"
    (pretrain,) = [command for script in blocks() for command in typed(script, folder) if command[1:2] == ["pretrain"]]
    cfg = accept(pretrain[1:])
    assert cfg is not None
    assert cfg.pretrain.arguments["upsampler"] == ""
    assert cfg.pretrain.arguments["depths"] == [6] * 6


@pytest.mark.parametrize(
    "line",
    ["gmd-ray adopt", "gmd-ray adapt teacher.stepz=3", "gmd-ray adapt --prset demo", "gmd-ray adapt preset=dem",
     "gmd-ray adapt teacher.steps=many", "ray job submit -- python jobs/adopt.py", "make dem"],
)  # fmt: skip
def test_a_readme_that_names_what_there_is_not_is_caught(line: str, folder: Path) -> None:
    (command,) = typed(line, folder)
    with pytest.raises((ConfigError, SystemExit, AssertionError)):
        run(command)


@pytest.mark.parametrize("span", sorted({span for span in spans() if span.split()[0] in COMMANDS and " " in span}))
def test_a_command_in_a_sentence_is_taken(span: str, folder: Path) -> None:
    if re.fullmatch(r"gmd-ray [\w-]+", span):  # a verb by its name
        with pytest.raises(SystemExit, match="0"):
            parse([span.split()[1], "--help"])
        return
    line = re.sub(r"(\S+?)\|\S+", r"\1", span).replace("[", "").replace("]", "")  # `--from a|b [--key COLUMN]`
    line = line.replace("<out>", "out")
    for command in typed(line, folder):
        run(command)


def setting(span: str) -> bool:
    return re.match(r"[a-z_]+(\.[\w]+)*=", span) is not None


@pytest.mark.parametrize("span", sorted({span for span in spans() if setting(span)}))
def test_settings_in_a_sentence_are_taken(span: str, folder: Path) -> None:
    if span.endswith("="):  # a setting by its name
        assert span[:-1] in {*names(), "preset", "config"}
        return
    (command,) = typed(f"gmd-ray config {span.replace('<out>', 'out')}", folder)
    with pytest.raises(ConfigError, match=FRAGMENTS[span]) if span in FRAGMENTS else contextlib.nullcontext():
        load_config(command[2:], check_paths=False)


@cache
def names() -> set[str]:
    """Settings and sections."""
    leaves = {key for key, _ in flatten(Config())}
    parts = (key.split(".") for key in leaves)
    return {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}


@pytest.mark.parametrize(
    "span", sorted({s for s in spans() if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", s) and s.split(".")[0] in names()})
)
def test_a_setting_that_is_named_exists(span: str) -> None:
    entry = span.rpartition(".")[0] in {key for key, value in flatten(Config()) if isinstance(value, dict)}
    assert span in names() or entry or span.endswith(".json"), span


@pytest.mark.parametrize("span", sorted({s.split("=")[0].split()[0] for s in spans() if s.startswith("--")}))
def test_an_option_that_is_named_exists(span: str) -> None:
    source = (ROOT / "gmd_ray" / "cli.py").read_text()
    assert f'"{span}"' in source or span in OTHERS_OPTIONS, span


def test_the_presets_that_are_named_exist() -> None:
    for name in set(re.findall(r"preset=([\w-]+)", README)) - {"NAME"}:
        field = "teacher.preset" if f"teacher.preset={name}" in README else "preset"
        load_config([f"{field}={name}"], check_paths=False)

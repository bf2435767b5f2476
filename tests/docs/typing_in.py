"""Commands of the documents, typed: bash takes the words apart, and the real parser takes the words."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gmd_ray.cli import parse
from gmd_ray.config import Config
from gmd_ray.config.load import load_config, require
from gmd_ray.images.degradation.degradations import make_degradation
from gmd_ray.verbs import folders as folder_verbs
from tests.docs.reading import ROOT

RUNS = ("adapt", "encode-prompts", "evaluate", "finetune", "generate", "plan", "pretrain")
"""Verbs that need some settings: a document shows them with all of these, or with `...`."""
COMMANDS = ("gmd-ray", "make", "ray", "python", "mlflow", "pip", "uv", "bash", "pytest")


def programs(folder: Path) -> Path:
    """Fill a folder with programs that write down the words they are given."""
    for name in COMMANDS:
        program = folder / name
        program.write_text('#!/bin/bash\nprintf "%s\\0" "${0##*/}" "$@" >> "$TYPED"\nprintf "\\1" >> "$TYPED"\n')
        program.chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    return folder


def typed(script: str, folder: Path) -> list[list[str]]:
    """The commands that bash makes of a script: the name of each, and its words."""
    record = folder / "typed"
    record.write_text("")
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", script],
        env={"PATH": str(folder), "TYPED": str(record), "HOME": "/home/me"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), script
    return [command.split("\0")[:-1] for command in record.read_text().split("\1")[:-1]]


def accept(words: list[str]) -> Config | None:
    """Take a command as the program does, up to the paths that must exist.

    Raises:
        ConfigError, SystemExit: it is refused.
    """
    args = parse([word for word in words if word != "..."])
    if args.verb == "degrade":
        make_degradation(args.preset)
    if not hasattr(args, "settings"):
        return None
    given = folder_verbs.restore_settings(args) if args.verb == "restore" else args.settings
    cfg = load_config(given, check_paths=False)
    of_a_run = getattr(args, "from_metrics", None)  # the settings are then those of a run
    if args.verb in RUNS and "..." not in words and given and of_a_run is None:
        require(cfg, args.verb)
    return cfg


def run(command: list[str]) -> None:
    """Check one command: program, words, files, modules, targets and extras."""
    name, *words = command
    if name == "gmd-ray":
        accept(words)
    elif name == "make":
        assert words[0] in targets() or words[0].startswith(".venv/"), words
    elif name == "ray" and words[:2] == ["job", "submit"]:
        script, *rest = words[words.index("python") + 1 :] if "python" in words else ["jobs/adapt.py"]
        assert (ROOT / script).is_file(), script
        accept([Path(script).stem.replace("_", "-"), *rest])
    elif name == "python":
        assert words[0] == "-m"
        _check_module(words[1], words[2:])
    elif name in ("bash", "pytest"):
        files = [word for word in words if "/" in word]
        assert files or name == "pytest", words
        assert all((ROOT / file).exists() for file in files), files
    elif name in ("pip", "uv"):
        for extras in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= known_extras(), extras


def _check_module(name: str, words: list[str]) -> None:
    """A module that exists, and of ours one whose source has every option that is given."""
    spec = find_spec(name)
    assert spec is not None, name
    if name.partition(".")[0] in ("gmd_ray", "tests"):
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        for word in words:
            assert not word.startswith("-") or f'"{word}"' in source, f"{name} has no option {word}"


@cache
def targets() -> set[str]:
    return set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@cache
def known_extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@cache
def help_of(*words: str) -> str:
    """Output of `gmd-ray WORDS --help`; empty if there is no such verb."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            parse([*words, "--help"])
    except SystemExit as done:
        return "" if done.code else out.getvalue()
    raise AssertionError(f"{words}: --help did not end the program")


@cache
def verbs() -> tuple[str, ...]:
    return tuple(name for name in re.findall(r"^ {4}([a-z][a-z-]*)\b", help_of(), re.MULTILINE) if help_of(name))


@cache
def actions() -> tuple[tuple[str, str], ...]:
    """(verb, action) of the verbs that have actions of their own, such as `study create`."""
    found = [
        (verb, name) for verb in verbs() for name in re.findall(r"^ {4}([a-z][a-z-]*)\b", help_of(verb), re.MULTILINE)
    ]
    return tuple(words for words in found if help_of(*words) not in ("", help_of(words[0])))


@cache
def options() -> set[str]:
    """Every option of every verb and its actions."""
    words = [(), *((verb,) for verb in verbs()), *actions()]
    return {option for each in words for option in re.findall(r"--[\w-]+", help_of(*each))}

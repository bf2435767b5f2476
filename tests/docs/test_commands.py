"""Every command that README and docs/ tell a person to type, typed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gmd_ray.errors import ConfigError
from tests.docs.reading import DOCUMENTS, Document, sample
from tests.docs.typing_in import COMMANDS, accept, help_of, options, programs, run, typed, verbs

OTHERS_OPTIONS = {
    *("--working-dir", "--runtime-env-json", "--dashboard-host", "--metrics-export-port"),
    *("--build-arg", "--profile", "--nodes", "--gpus-per-node"),
}
"""Options of Ray's commands, and of Docker's and Slurm's."""
BENCHMARKS = "tests/benchmarks/README.md"
"""Its options are those of its own modules, whose commands stand in indented blocks."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return programs(tmp_path_factory.mktemp("programs"))


def commands_in_sentences(document: Document) -> list[str]:
    return sorted({span for span in document.spans() if span.split()[0] in COMMANDS and " " in span})


def as_typed(span: str) -> str:
    """A command of a sentence, with one of its alternatives: `--from a|b [--key COLUMN]`."""
    line = re.sub(r"(\S+?)\|\S+", r"\1", span)
    return re.sub(r"\[(--[^\]]*)\]", r"\1", line).replace("<out>", "out")


@pytest.mark.parametrize("script", [pytest.param(script, id=d.name) for d in DOCUMENTS for script in d.blocks("bash")])
def test_a_block_is_taken_as_it_is_printed(script: str, folder: Path) -> None:
    commands = typed(script, folder)
    assert commands or script.startswith(". .venv/bin/activate")
    for command in commands:
        run(command)


@pytest.mark.parametrize("span", sorted({span for d in DOCUMENTS for span in commands_in_sentences(d)}))
def test_a_command_in_a_sentence_is_taken(span: str, folder: Path) -> None:
    if re.fullmatch(r"gmd-ray [\w-]+", span):  # a verb by its name
        assert help_of(span.split()[1]), span
        return
    for command in typed(as_typed(span), folder):
        run(command)


@pytest.mark.parametrize(
    "line", [line.strip() for d in DOCUMENTS for line in re.findall(r"^    (python -m .*)$", d.text, re.MULTILINE)]
)
def test_an_indented_command_is_taken(line: str, folder: Path) -> None:
    """The benchmarks' own page has its commands in indented blocks."""
    (command,) = typed(line, folder)
    run(command)


def test_the_words_arrive(folder: Path) -> None:
    """The meaning of the documents' own examples, so that the other tests are not empty."""
    (command,) = typed("gmd-ray config source.hq=hq source.lq=lq source.lq_template='{}x4'", folder)
    cfg = accept(command[1:])
    assert cfg is not None
    assert cfg.source.lq_template == "{}x4"
    blocks = [script for d in DOCUMENTS for script in d.blocks("bash")]
    commands = [command for script in blocks for command in typed(script, folder)]
    *_, pretrain = (command for command in commands if command[1:2] == ["pretrain"])
    cfg = accept(pretrain[1:])
    assert cfg is not None
    assert cfg.pretrain.arguments["upsampler"] == ""
    assert cfg.pretrain.arguments["depths"] == [6] * 6
    assert {"adapt", "restore", "plan", "gate", "export"} <= {command[1] for command in commands if len(command) > 1}


@pytest.mark.parametrize(
    "line",
    [
        *("gmd-ray adopt", "gmd-ray adapt teacher.stepz=3", "gmd-ray adapt --prset demo", "gmd-ray adapt preset=dem"),
        *("gmd-ray adapt teacher.steps=many", "gmd-ray degrade -i HQ -o DIR --preset storm", "gmd-ray ls metricks"),
        *("ray job submit -- python jobs/adopt.py", "make dem", "pip install -e '.[metricks]'"),
        *("python -m tests.benchmarks.latenzy", "python -m tests.benchmarks.latency --sides 64"),
        *("bash tests/benchmarks/real_photographs.sh DATA OUT", "pytest -m chaos tests/generation/test_none.py"),
    ],
)
def test_an_invented_command_is_caught(line: str, folder: Path) -> None:
    (command,) = typed(line, folder)
    with pytest.raises((ConfigError, SystemExit, AssertionError)):
        run(command)


def test_the_verbs_and_options_are_those_of_the_parser() -> None:
    assert {"adapt", "generate", "restore", "new-student", "ls"} <= set(verbs())
    assert {"--retry-failed", "--deep", "--html", "--version"} <= options()
    assert "--retry-failed" in help_of("generate")
    assert not help_of("adopt")
    assert named_options(sample("`--deep`, `--prset demo` and `--html=x`")) - options() == {"--prset"}


def test_the_table_of_commands_has_every_verb_and_no_other() -> None:
    (quickstart,) = [document for document in DOCUMENTS if document.name == "docs/quickstart.md"]
    cells = re.findall(r"^\| (`[^|]*) \|", quickstart.sections()["Commands"], re.MULTILINE)
    spans = [span.removeprefix("gmd-ray ") for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    assert sorted(span.split()[0] for span in spans) == sorted(verbs())


def named_options(document: Document) -> set[str]:
    return {re.split(r"[= ]", span)[0] for span in document.spans() if span.startswith("--")}


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name != BENCHMARKS], ids=lambda d: d.name)
def test_an_option_that_is_named_exists(document: Document) -> None:
    assert named_options(document) <= options() | OTHERS_OPTIONS

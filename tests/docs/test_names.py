"""Settings, presets, files, modules, links and figure sources that README and docs/ name exist."""

from __future__ import annotations

import dataclasses
import os
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from gmd_ray.config import Config
from gmd_ray.config.load import load_config
from gmd_ray.errors import ConfigError
from gmd_ray.images.degradation.degradations import PRESETS
from gmd_ray.quality import known_metrics
from tests.docs.reading import DOCUMENTS, ROOT, Document, read_document, sample
from tests.docs.typing_in import programs, typed

COMPANIONS = {
    "controls=[source_only,median,supervised]": ["training.supervised_hq=a"],
    "training.export=best": ["training.validate_every=9", "evaluation.source_hq=a", "evaluation.source_lq=b"],
    "training.validate_every=1000 evaluation.source_hq=...": ["evaluation.source_lq=b"],
}
"""Settings that stand in a sentence by themselves, and what they need beside them: the first of it is in the error."""
FOLDERS = ("gmd_ray", "tests", "jobs", "docs", "cluster", ".ci")
PLACEHOLDERS = {"key=value", "config=FILE", "preset=NAME"}
LONGEST = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return programs(tmp_path_factory.mktemp("programs"))


def flatten(section: object, head: str = "") -> dict[str, object]:
    """Dotted key -> value of every setting and every section."""
    found: dict[str, object] = {}
    for item in dataclasses.fields(section):  # type: ignore[arg-type]
        value = getattr(section, item.name)
        found[f"{head}{item.name}"] = value
        if dataclasses.is_dataclass(value):
            found |= flatten(value, f"{head}{item.name}.")
    return found


@cache
def names() -> dict[str, object]:
    return flatten(Config())


@cache
def made_by_examples() -> set[str]:
    """Names that the worked examples add to the project's tables."""
    blocks = "".join(block for document in DOCUMENTS for block in document.blocks("python"))
    return set(re.findall(r'^[\w.]+\["(\w+)"\] = ', blocks, re.MULTILINE))


def unknown_settings(document: Document) -> list[str]:
    """Dotted keys in backticks whose section exists and that are no setting."""
    found = []
    for span in document.spans():
        key = span.removesuffix("=")
        if not re.fullmatch(r"[a-z_]+(\.\w+)+", key) or key.split(".")[0] not in names():
            continue
        entry = isinstance(names().get(key.rpartition(".")[0]), dict)
        if key not in names() and not entry and not key.endswith((".json", ".yaml", ".parquet", ".py")):
            found.append(key)
    return found


def unknown_files(document: Document) -> list[str]:
    """Paths in backticks that look like files of the repository and are none."""
    found = []
    examples = {block.partition(":")[0].split()[1] for d in DOCUMENTS for block in d.blocks("python")}
    for span in document.spans():
        path = span.split()[0]
        if path.split("/")[0] in FOLDERS and "/" in path:
            known = (ROOT / path).exists()
        elif re.fullmatch(r"[\w./-]+\.(py|sh|toml|lock)", path):
            known = path in examples or path in files() or any(name.endswith(f"/{path}") for name in files())
        else:
            continue
        if not known:
            found.append(path)
    return found


@cache
def files() -> frozenset[str]:
    kept = []
    for folder, folders, inside in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in ("runs", "build", "dist")]
        kept += [Path(folder, name).relative_to(ROOT).as_posix() for name in inside]
    return frozenset(kept)


def unknown_modules(document: Document) -> list[str]:
    """Dotted names of ours in backticks that can be imported neither as a module nor from one."""
    dotted = {span for span in document.spans() if re.fullmatch(r"(gmd_ray|tests)(\.\w+)+", span)}
    return [name for name in sorted(dotted) if not _importable(name)]


def _importable(name: str) -> bool:
    try:
        if find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        pass
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(import_module(module), attribute)
    except ModuleNotFoundError:
        return False


def broken_links(document: Document) -> list[str]:
    found = []
    for link in document.links():
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (document.path.parent / target).resolve() if target else document.path
        if (path != document.path and not path.exists()) or (
            anchor and anchor not in (document if path == document.path else read_document(path)).anchors()
        ):
            found.append(link)
    return found


def without_source(document: Document) -> list[str]:
    """Sections with figures that name no command or test which makes them."""
    source = re.compile(r"(python -m (tests|gmd_ray)\.|\bmake \w|python jobs/|bash tests/|tests/[\w/]+\.py)")
    return [
        title for title, text in document.sections().items() if re.search(r"\d[.,]\d", text) and not source.search(text)
    ]


def long_lines(document: Document) -> list[str]:
    """Lines beyond 120 characters outside tables and fenced blocks; code within them cannot be broken."""
    lines = [line for line in document.prose.splitlines() if not line.startswith(("|", "    "))]
    return [line for line in lines if len(re.sub(r"`[^`]*`", "", line)) > LONGEST]


CHECKS = (unknown_settings, unknown_files, unknown_modules, broken_links)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_what_a_document_names_exists(check, document: Document) -> None:  # type: ignore[no-untyped-def]
    assert check(document) == []


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if d.path.parent != ROOT / "tests/benchmarks"], ids=lambda d: d.name
)
def test_lines_can_be_read_in_an_editor(document: Document) -> None:
    assert long_lines(document) == []


def test_every_result_names_its_command() -> None:
    (results,) = [document for document in DOCUMENTS if document.name == "docs/results.md"]
    assert without_source(results) == []


def test_the_readme_is_short_and_its_picture_small() -> None:
    (readme,) = [document for document in DOCUMENTS if document.name == "README.md"]
    assert len(readme.source.splitlines()) <= 150
    pictures = [ROOT / link for link in readme.links() if link.endswith((".webp", ".png"))]
    assert pictures
    assert all(picture.stat().st_size < 150_000 for picture in pictures)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.path.parent == ROOT / "docs"], ids=lambda d: d.name)
def test_a_long_page_begins_with_its_contents(document: Document) -> None:
    titles = list(document.sections())
    anchors = [next(iter(sample(f"## {title}").anchors())) for title in titles]
    expected = "\n".join(f"- [{title}](#{anchor})" for title, anchor in zip(titles, anchors, strict=True))
    if len(document.source.splitlines()) > 60:
        assert expected in document.text, f"{document.name} needs its contents below the title:\n{expected}"


def test_the_readme_leads_to_every_page() -> None:
    (readme,) = [document for document in DOCUMENTS if document.name == "README.md"]
    linked = {link.partition("#")[0] for link in readme.links()}
    assert {d.name for d in DOCUMENTS if d.path.parent == ROOT / "docs"} <= linked


def setting(span: str) -> bool:
    return re.match(r"[a-z_]+(\.[\w]+)*=", span) is not None and not span.endswith("=") and span not in PLACEHOLDERS


def metrics() -> dict[str, object]:
    known = known_metrics()
    return {**known, **dict.fromkeys(made_by_examples(), known["psnr"])}


@pytest.mark.parametrize("span", sorted({span for d in DOCUMENTS for span in d.spans() if setting(span)}))
def test_settings_in_a_sentence_are_taken(span: str, folder: Path) -> None:
    (command,) = typed(f"gmd-ray config {span.replace('<out>', 'out').replace('NAME', 'nima')}", folder)
    given = command[2:]
    if span in COMPANIONS:
        with pytest.raises(ConfigError, match=re.escape(COMPANIONS[span][0].partition("=")[0])):
            load_config(given, check_paths=False)
    cfg = load_config([*given, *COMPANIONS.get(span, [])], check_paths=False, known_metrics=metrics)
    assert cfg.source.degradation in {None, *PRESETS, *made_by_examples()}


def test_the_presets_that_are_named_exist() -> None:
    text = "".join(document.text for document in DOCUMENTS)
    found = set(re.findall(r"(?<![\w-])((?:teacher\.)?preset)=([\w-]+)", text))
    assert {("preset", "toy"), ("preset", "deblur_reds"), ("teacher.preset", "rf-solver")} <= found
    for key, name in found - {("preset", "NAME")}:
        load_config([f"{key}={name}"], check_paths=False)


def test_the_teacher_presets_of_the_table_are_all_there_are() -> None:
    presets = yaml.safe_load((ROOT / "gmd_ray/config/teacher_presets.yaml").read_text(encoding="utf-8"))
    (teachers,) = [document for document in DOCUMENTS if document.name == "docs/teachers.md"]
    listed = re.findall(r"^\| (`.*?) (?:\(default\) )?\|", teachers.sections()["Methods"], re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", "".join(listed))) == set(presets)


@pytest.mark.parametrize(
    ("check", "text", "name"),
    [
        (unknown_settings, "Set `teacher.stepz` or `teacher.steps`.", "teacher.stepz"),
        (unknown_settings, "`student.pool.minimum` and `evaluation.weights.nima`", "student.pool.minimum"),
        (unknown_files, "See `gmd_ray/nowhere.py`, `gmd_ray/cli.py` and `tests/`.", "gmd_ray/nowhere.py"),
        (unknown_files, "`Makefile`, `test_nothing.py`, `pyproject.toml`", "test_nothing.py"),
        (
            unknown_modules,
            "`gmd_ray.students.nothing` and `gmd_ray.students.ModuleStudent`",
            "gmd_ray.students.nothing",
        ),
        (broken_links, "[a](nothing.md) [b](quickstart.md) [c](https://ray.io)", "nothing.md"),
        (broken_links, "[a](quickstart.md#nothing) [b](quickstart.md#install)", "quickstart.md#nothing"),
        (broken_links, "# Here\n[a](#there) [b](#here) ![c](images/none.png)", "#there"),
        (without_source, "## A\nPSNR 24.69\n## B\nPSNR 24.69 (`make demo`)\n## C\nno figure", "A"),
        (long_lines, f"{'x' * 121}\n| {'x' * 121} |\n```\n{'x' * 121}\n```\n", "x" * 121),
    ],
)
def test_an_invented_name_is_caught(check, text: str, name: str) -> None:  # type: ignore[no-untyped-def]
    assert check(sample(text))[0] == name
    assert len(check(sample(text))) == (2 if "images/none.png" in text else 1)


@pytest.mark.parametrize("span", ["teacher.steps=many", "teacher.stepz=3", "preset=dem", "evaluation.metrics=[psnrr]"])
def test_an_invented_value_is_caught(span: str, folder: Path) -> None:
    with pytest.raises(ConfigError):
        test_settings_in_a_sentence_are_taken(span, folder)

"""The shape of the house: sizes of files and folders, no import circle, one meaning a name, words that stand alone."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_walls import ROOT, Tree, imports, read_tree

MAX_LINES = 320
MAX_FILES = 14
CONTINUES = re.compile(r"(Of|What|Whether|How|That|Which|Who|Whom|Whose)\b")
"""First words of a docstring that goes on where the name above it stops."""
WRITTEN = {"ATTRIBUTION.md", "result.md", "table.md"}
"""Markdown files that the code writes."""
CITED = re.compile(r"(?<![\w/*.-])((?:[\w-]+/)*[\w-]+\.md)\b")


def sources() -> Tree:
    """Every Python file of ours, tests included."""
    files = sorted((ROOT / "tests").rglob("*.py"))
    return {**read_tree(), **{file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}}


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each docstring, those of attributes included."""
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value.strip()


def dangling(source: str) -> list[str]:
    """Docstrings that cannot be read without the name above them."""
    return [f"{line}: {text.splitlines()[0]}" for line, text in docstrings(source) if CONTINUES.match(text)]


def circles(tree: Tree) -> list[list[str]]:
    """Groups of files that import each other in a circle, by Tarjan's algorithm."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in tree}
    edges = {}
    for module, path in modules.items():
        names = {name for name in imports(path, tree[path]) if name in modules and name != module}
        # `from gmd_ray.a import b` names both; the package counts where nothing below it is meant.
        edges[module] = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(modules):
        if module not in index:
            visit(module)
    return found


def classes_twice(tree: Tree) -> list[str]:
    """Public class names that two files define."""
    homes: dict[str, list[str]] = {}
    for path, source in tree.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path)
    return [f"{name}: {', '.join(paths)}" for name, paths in homes.items() if len(paths) > 1]


def test_no_file_is_longer_than_one_can_hold_in_mind() -> None:
    long = {path: source.count("\n") for path, source in sources().items() if source.count("\n") > MAX_LINES}
    assert long == {}


def test_no_folder_holds_more_files_than_one_can_look_over() -> None:
    counts = Counter(str(Path(path).parent) for path in sources())
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}


def test_no_import_circle() -> None:
    assert circles(read_tree()) == []


def test_an_import_circle_is_caught() -> None:
    tree = {
        "gmd_ray/__init__.py": "",
        "gmd_ray/a.py": "from gmd_ray.b import x",
        "gmd_ray/b.py": "def f():\n    from gmd_ray import c",
        "gmd_ray/c.py": "import gmd_ray.a",
        "gmd_ray/d.py": "from gmd_ray.a import y",
    }
    assert circles(tree) == [["gmd_ray.a", "gmd_ray.b", "gmd_ray.c"]]


def test_a_class_name_means_one_thing() -> None:
    assert classes_twice(read_tree()) == []
    assert classes_twice({"a.py": "class Plan: ...", "b.py": "class Plan: ..."}) == ["Plan: a.py, b.py"]


def test_docstrings_stand_without_the_name_above_them() -> None:
    found = [f"{path}:{line}" for path, source in sources().items() for line in dangling(source)]
    assert found == []


@pytest.mark.parametrize("text", ["Of the inputs, those without a row.", "Whether it is done.", "What was measured."])
def test_a_docstring_that_continues_its_name_is_caught(text: str) -> None:
    assert len(dangling(f'def f():\n    """{text}"""')) == 1
    assert len(dangling(f'class A:\n    x: int = 0\n    """{text}"""')) == 1
    assert dangling(f'x = "{text}"') == []


def test_every_note_that_the_source_cites_is_in_the_repository() -> None:
    cited = {
        f"{path}: {name}"
        for path, source in read_tree().items()
        for name in set(CITED.findall(source)) - WRITTEN
        if not any((place / name).is_file() for place in (ROOT, ROOT / "docs"))
    }
    assert cited == set()

"""The walls of the house: which room imports what, read from the sources, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Collection
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MODEL_ROOMS = ("students", "teachers", "quality")
ENGINE_ROOMS = ("generation", "training", "evaluation")
MODEL_LIBRARIES = {"diffusers", "spandrel", "spandrel_extra_arches", "pyiqa", "transformers", "timm"}

COMMON = {"destinations", "devices", "errors", "hashing", "network", "progress", "storage", "text"}
"""The ground floor, which any room may use."""
ABOVE = {"adapt", "ready", "terminal"}
"""Files above the rooms, which only the verbs may use."""
ROOMS: dict[str, set[str]] = {
    "config": set(),
    "weights": set(),
    "images": {"config"},
    "students": {"config", "images", "weights"},
    "teachers": {"config", "images", "weights"},
    "quality": {"config", "images", "weights"},
    "pairstore": {"config", "images", "weights"},
    "ray_utils": {"config"},
    "generation": {"config", "images", "pairstore", "ray_utils", *MODEL_ROOMS},
    "training": {"config", "images", "pairstore", "ray_utils", "students", "weights"},
    "evaluation": {"config", "images", "pairstore", "ray_utils", "generation", *MODEL_ROOMS},
    "report": {"config", "images", "pairstore", "evaluation", "teachers"},
    "serving": {"config", "images", "pairstore"},
    "study": {"config", "images", "evaluation", "serving"},
    "folders": {"config", "images", "pairstore", "ray_utils", "students"},
    "tracking": {"config", "images", "pairstore", "evaluation", "teachers", "weights"},
    "planning": {"config", "images", "pairstore", "weights", *MODEL_ROOMS, *ENGINE_ROOMS},
    "ablation": {"config", "images", "pairstore", "planning", *ENGINE_ROOMS},
    "preview": {
        "config",
        "images",
        "pairstore",
        "generation",
        "evaluation",
        "planning",
        "report",
        *MODEL_ROOMS,
    },
    "demo": {"config", "images", *MODEL_ROOMS},
    "verbs": {
        "ablation",
        "config",
        "demo",
        "folders",
        "images",
        "pairstore",
        "planning",
        "preview",
        "ray_utils",
        "report",
        "serving",
        "study",
        "tracking",
        "weights",
        *MODEL_ROOMS,
        *ENGINE_ROOMS,
    },
}
"""Room -> the rooms it may import."""

Tree = dict[str, str]
"""Path below the repository root -> source text."""


@cache
def read_tree() -> Tree:
    files = [file for folder in ("gmd_ray", "jobs") for file in sorted((ROOT / folder).rglob("*.py"))]
    return {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in files}


@cache
def imports(path: str, source: str) -> set[str]:
    """Dotted names that a file imports, anywhere in it.

    `from a import b` gives `a` and `a.b`, for b may be a module; relative names are resolved; a literal name given to
    `import_module` or `__import__` counts.
    """
    parts = path.removesuffix(".py").split("/")
    package = parts[:-1]  # of a module, and of the package that an __init__.py is
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                names.add(str(node.args[0].value))
    return names


def room_of(path: str) -> str | None:
    """`students` for gmd_ray/students/x.py; None for a file of no room."""
    parts = path.split("/")
    return parts[1] if parts[0] == "gmd_ray" and len(parts) > 2 else None


def library_offences(tree: Tree, libraries: set[str], rooms: set[str] | None, but: Collection[str] = ()) -> list[str]:
    """Files of `rooms` (None: all files, jobs too) outside `but` that import one of `libraries`."""
    return [
        f"{path} imports {name}"
        for path, source in tree.items()
        if (rooms is None or room_of(path) in rooms) and room_of(path) not in but
        for name in sorted(imports(path, source))
        if name.split(".")[0] in libraries
    ]


def protocol_offences(tree: Tree) -> list[str]:
    """Engine files that reach past a model room's package and protocol into one of its modules."""
    modules = {path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in tree}
    inner = {
        module
        for module in modules
        for room in MODEL_ROOMS
        if module.startswith(f"gmd_ray.{room}.") and module != f"gmd_ray.{room}.protocol"
    }
    return [
        f"{path} imports {name}"
        for path, source in tree.items()
        if room_of(path) in ENGINE_ROOMS
        for name in sorted(imports(path, source))
        if any(name == module or name.startswith(f"{module}.") for module in inner)
    ]


def room_offences(tree: Tree) -> list[str]:
    """Imports of ours that the table of rooms does not allow."""
    found = []
    for path, source in tree.items():
        room = room_of(path)
        if room is None:
            continue
        allowed = ROOMS[room] | COMMON | {room, "__version__"}
        if room == "verbs":
            allowed |= ABOVE
        for name in sorted(imports(path, source)):
            head, _, rest = name.partition(".")
            if head == "gmd_ray" and rest and rest.split(".")[0] not in allowed:
                found.append(f"{path} imports {name}")
    return found


def test_model_rooms_run_on_a_bare_gpu_box() -> None:
    assert library_offences(read_tree(), {"ray", "mlflow"}, {*MODEL_ROOMS, "images"}) == []


def test_engines_see_models_through_protocols() -> None:
    tree = read_tree()
    assert protocol_offences(tree) == []
    assert library_offences(tree, MODEL_LIBRARIES, set(ENGINE_ROOMS)) == []


def test_tracking_alone_knows_mlflow() -> None:
    assert library_offences(read_tree(), {"mlflow"}, None, but={"tracking"}) == []


def test_rooms_import_what_the_design_allows() -> None:
    assert room_offences(read_tree()) == []


def test_every_room_is_in_the_table() -> None:
    assert {room for path in read_tree() if (room := room_of(path))} == set(ROOMS)


@pytest.mark.parametrize(
    "source",
    [
        "import ray",
        "import ray.data as rd",
        "from ray import train",
        "from mlflow.tracking import MlflowClient",
        "def f():\n    import ray",
        "class A:\n    def f(self):\n        if self:\n            from ray.data import Dataset",
        "import importlib\nimportlib.import_module('ray.data')",
        "__import__('mlflow')",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray",
    ],
)
@pytest.mark.parametrize("room", ["images", *MODEL_ROOMS])
def test_a_model_room_that_imports_an_engine_is_caught(room: str, source: str) -> None:
    tree = {f"gmd_ray/{room}/made_up.py": source}
    assert len(library_offences(tree, {"ray", "mlflow"}, {*MODEL_ROOMS, "images"})) >= 1


@pytest.mark.parametrize("source", ["import raymond", "from . import ray", "from .ray import x", "x = 'import ray'"])
def test_a_name_that_only_looks_alike_is_not(source: str) -> None:
    tree = {"gmd_ray/images/made_up.py": source}
    assert library_offences(tree, {"ray", "mlflow"}, {"images"}) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gmd_ray/generation/made_up.py", "from gmd_ray.students.family import Family"),
        ("gmd_ray/generation/made_up.py", "import gmd_ray.students.family"),
        ("gmd_ray/evaluation/made_up.py", "from gmd_ray.students import family"),
        ("gmd_ray/evaluation/deep/made_up.py", "from ...students.family import Family"),
        ("gmd_ray/training/__init__.py", "def f():\n    from ..students import family"),
        (
            "gmd_ray/training/made_up.py",
            "from importlib import import_module\nimport_module('gmd_ray.students.family')",
        ),
    ],
)
def test_an_engine_that_reaches_into_a_model_room_is_caught(path: str, source: str) -> None:
    tree = {path: source, "gmd_ray/students/__init__.py": "", "gmd_ray/students/family.py": ""}
    assert len(protocol_offences(tree)) >= 1


def test_an_engine_may_use_the_loader_and_the_protocol() -> None:
    source = "from gmd_ray.students import Student, load_student\nfrom gmd_ray.students.protocol import Student as S"
    files = ("__init__", "protocol", "family")
    tree = {f"gmd_ray/students/{name}.py": "from gmd_ray.students.family import x" for name in files}
    assert protocol_offences({"gmd_ray/training/made_up.py": source, **tree}) == []


def test_an_engine_that_builds_a_model_itself_is_caught() -> None:
    tree = {"gmd_ray/generation/made_up.py": "def f():\n    from diffusers import FluxPipeline"}
    assert len(library_offences(tree, MODEL_LIBRARIES, set(ENGINE_ROOMS))) >= 1


@pytest.mark.parametrize("path", ["gmd_ray/evaluation/x.py", "gmd_ray/demo/x.py", "gmd_ray/cli.py", "jobs/adapt.py"])
def test_mlflow_outside_tracking_is_caught(path: str) -> None:
    source = "def f():\n    import mlflow.pyfunc"
    assert library_offences({path: source}, {"mlflow"}, None, but={"tracking"}) == [f"{path} imports mlflow.pyfunc"]
    assert library_offences({"gmd_ray/tracking/x.py": source}, {"mlflow"}, None, but={"tracking"}) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("gmd_ray/config/x.py", "from gmd_ray.images.degradation.degradations import PRESETS"),
        ("gmd_ray/images/x.py", "from gmd_ray import students"),
        ("gmd_ray/students/x.py", "from ..teachers import load_teacher"),
        ("gmd_ray/training/x.py", "from gmd_ray.generation import generate"),
        ("gmd_ray/training/x.py", "def f():\n    from .. import evaluation"),
        ("gmd_ray/training/x.py", "from gmd_ray.quality import load_metric"),
        ("gmd_ray/generation/x.py", "from gmd_ray.evaluation import evaluate"),
        ("gmd_ray/evaluation/x.py", "from gmd_ray.training import finetune"),
        ("gmd_ray/demo/x.py", "from gmd_ray.adapt import adapt"),
        ("gmd_ray/tracking/x.py", "from gmd_ray.generation import generate"),
    ],
)
def test_an_import_against_the_table_is_caught(path: str, source: str) -> None:
    assert len(room_offences({path: source})) >= 1


def test_errors_and_progress_are_everybodys() -> None:
    source = "from gmd_ray import __version__\nfrom gmd_ray.errors import GmdError\nfrom ..progress import Recorder"
    assert room_offences({f"gmd_ray/{room}/x.py": source for room in ROOMS}) == []

"""The description of a sweep: a YAML file of rows, each a name, settings over the base run, and a kind of student."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from gmd_ray.errors import ConfigError, nearest
from gmd_ray.evaluation.summaries.published import published_rows

_PRESETS = Path(__file__).parent / "presets"
KINDS = ("baseline", "adapted", "source_only", "median", "supervised", "pairs")
"""The student of a row. baseline: `student.path` as it is. adapted and the three controls: fine-tunes by those names.
pairs: none; the row is about the pair store alone."""
_READ_PAIRS = ("adapted", "median", "supervised", "pairs")
_KEYS = {"title", "published", "reference", "latency", "parameters", "rows"}
_ROW_KEYS = {"name", "set", "grid", "student", "online"}


@dataclass(frozen=True)
class SweepRow:
    """One line of the table: a method, which is run with every training seed."""

    name: str
    overrides: tuple[str, ...] = ()
    """Settings over the base run, as `key=value`."""
    student: str = "adapted"
    """One of `KINDS`."""
    online: bool = False
    """The teacher projects the student's output at test time (`evaluation.online`)."""


@dataclass(frozen=True)
class Ablation:
    """A table to be made."""

    name: str
    title: str
    rows: tuple[SweepRow, ...]
    published: str | None = None
    """The paper's table whose rows stand below ours, as `evaluation.published`: `7/REDS`; None for no table."""
    reference: str | None = None
    """Name of the row that all others are also compared with; None compares with the baseline alone."""
    latency: bool = False
    """Show parameters and seconds an image."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Name of a row that was not made -> the parameter that it needs and nobody gave."""


def sweep_names() -> list[str]:
    """The names of the sweeps that come with the package."""
    return sorted((path.stem for path in _PRESETS.glob("*.yaml")), key=lambda name: (len(name), name))


def load_sweep(name: str, given: Mapping[str, str] | None = None, *, complete: bool = True) -> Ablation:
    """Load a sweep.

    Args:
        name: one of `sweep_names`, or the path of a YAML file.
        given: values of the sweep's parameters, which stand for `{parameter}` in its settings. A row that needs one
            which is not given is left out.
        complete: refuse a sweep that has no row left.

    Raises:
        ConfigError: no such sweep, or a file that does not describe one.
    """
    given = given or {}
    path = Path(name) if name.endswith((".yaml", ".yml")) else _PRESETS / f"{name}.yaml"
    if not path.is_file():
        hint = "" if path.parent != _PRESETS else f"; {nearest(name, sweep_names())}"
        raise ConfigError(f"{name}: no such sweep{hint}")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{name}: cannot be read as YAML ({str(error).splitlines()[0]})") from error
    _check_keys(document, _KEYS, name)
    if document.get("published") is not None:
        published_rows(str(document["published"]))
    parameters = document.get("parameters") or {}
    for key in given:
        if key not in parameters:
            raise ConfigError(f"{name}: no parameter {key!r}; {nearest(key, parameters)}")
    rows: list[SweepRow] = []
    left_out: dict[str, str] = {}
    for entry in document.get("rows") or []:
        _check_keys(entry, _ROW_KEYS, f"{name}: rows")
        for row in _expanded(entry, name):
            text = " ".join(row.overrides)
            missing = [key for key in parameters if f"{{{key}}}" in text and key not in given]
            if missing:
                left_out[row.name] = ", ".join(f"--with {key}=... ({parameters[key]})" for key in missing)
            else:
                rows.append(_filled(row, given))
    sweep = Ablation(
        name=path.stem,
        title=str(document.get("title", path.stem)),
        rows=tuple(rows),
        published=None if document.get("published") is None else str(document["published"]),
        reference=document.get("reference"),
        latency=bool(document.get("latency", False)),
        left_out=left_out,
    )
    if complete:
        _check(sweep)
    return sweep


def of_pairs(sweep: Ablation) -> Ablation:
    """The rows of a sweep that make pairs, without their fine-tunes; its name gets the ending `-pairs`."""
    rows = tuple(replace(row, student="pairs", online=False) for row in sweep.rows if row.student in _READ_PAIRS)
    return replace(sweep, name=f"{sweep.name}-pairs", rows=rows, reference=None, latency=False)


def _check(sweep: Ablation) -> None:
    names = [row.name for row in sweep.rows]
    if not names:
        needed = "".join(f"; {row} needs {what}" for row, what in sweep.left_out.items())
        raise ConfigError(f"{sweep.name}: a sweep without rows{needed}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{sweep.name}: two rows are called {twice[0]!r}")
    if sweep.reference is not None and sweep.reference not in (*names, *sweep.left_out):
        raise ConfigError(f"{sweep.name}: reference: no row {sweep.reference!r}; {nearest(sweep.reference, names)}")


def _expanded(entry: Mapping[str, Any], where: str) -> Sequence[SweepRow]:
    """The rows of an entry: one, or one for each combination of its grid."""
    kind, name = entry.get("student", "adapted"), entry.get("name")
    if kind not in KINDS:
        raise ConfigError(f"{where}: student: {kind!r}; {nearest(str(kind), KINDS)}")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: a row without a name")
    settings, grid = entry.get("set") or {}, entry.get("grid") or {}
    if not isinstance(settings, dict) or not isinstance(grid, dict):
        raise ConfigError(f"{where}: {name}: set and grid map settings to values")
    rows = []
    for values in itertools.product(*(_listed(values, f"{where}: {name}") for values in grid.values())):
        point = dict(zip(grid, values, strict=True))
        unnamed = [key for key in point if f"{{{key}}}" not in name and len(grid[key]) > 1]
        full = name + (f" ({', '.join(f'{key}={_text(point[key])}' for key in unnamed)})" if unnamed else "")
        rows.append(
            SweepRow(
                name=_replaced(full, {key: _text(value) for key, value in point.items()}),
                overrides=tuple(f"{key}={_text(value)}" for key, value in {**settings, **point}.items()),
                student=kind,
                online=bool(entry.get("online", False)),
            )
        )
    return rows


def _filled(row: SweepRow, given: Mapping[str, str]) -> SweepRow:
    overrides = tuple(_replaced(text, given) for text in row.overrides)
    return replace(row, overrides=overrides)


def _replaced(text: str, values: Mapping[str, str]) -> str:
    """Put values in place of `{key}`; other braces, as in `${out}`, stay."""
    return re.sub(r"(?<!\$)\{([\w.]+)\}", lambda found: values.get(found[1], found[0]), text)


def _text(value: Any) -> str:
    """A value as the command line has it; JSON is YAML, too."""
    return value if isinstance(value, str) else json.dumps(value)


def _listed(values: Any, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{where}: grid: give a list of values for each setting")
    return values


def _check_keys(document: Any, known: set[str], where: str) -> None:
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: not a mapping")
    for key in document:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(str(key), known)}")

"""The verb `ls`: names that settings take, and the meaning of each."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from gmd_ray.errors import ConfigError
from gmd_ray.terminal import show
from gmd_ray.verbs.arguments import Verbs


def register(verbs: Verbs) -> None:
    """Add ls."""
    listing = verbs.add("ls", run_ls, "list the names that settings take")
    listing.add_argument("what", choices=[*CATALOGUES, TEACHERS])
    text = "after `teachers`: directories to describe in the place of the known ones"
    listing.add_argument("paths", nargs="*", metavar="DIR", help=text)


def run_ls(args: argparse.Namespace) -> int:
    if args.what == TEACHERS:
        from gmd_ray.teachers.catalogue.table import teacher_table

        show(teacher_table(args.paths))
        return 0
    if args.paths:
        raise ConfigError(f"ls {args.what} {args.paths[0]}: only `ls teachers` takes directories")
    show(table(args.what))
    return 0


def metrics() -> list[tuple[str, str]]:
    """(name, meaning) of each metric: its reference, its better direction, and whether one image has a value."""
    from gmd_ray.quality import known_metrics

    rows = []
    for name, info in known_metrics().items():
        kind = "needs ground truth" if info.needs_reference else "no reference"
        better = "higher is better" if info.higher_is_better else "lower is better"
        rows.append((name, f"{kind}, {better}{'' if info.per_image else ', of a whole set of images'}"))
    return rows


def presets() -> list[tuple[str, str]]:
    """(name, meaning) of each preset: the first sentence of its heading."""
    from gmd_ray.config.load import preset_heading, preset_names

    return [(name, preset_heading(name)) for name in preset_names()]


def degradations() -> list[tuple[str, str]]:
    """(name, meaning) of each degradation: the fields that differ from the defaults of its chain."""
    from gmd_ray.images.degradation.degradations import PRESETS, Degradation
    from gmd_ray.images.degradation.second_order import SecondOrder

    chains: dict[type, str] = {Degradation: "one round", SecondOrder: "Real-ESRGAN's two rounds"}
    rows = []
    for name, preset in PRESETS.items():
        chain = chains.get(type(preset), type(preset).__name__)
        default = type(preset)()
        changed = [
            f"{field.name}={_value(getattr(preset, field.name))}"
            for field in fields(preset)
            if getattr(preset, field.name) != getattr(default, field.name) or field.name == "scale"
        ]
        rows.append((name, f"{chain}: {', '.join(changed)}"))
    return sorted(rows)


def sets() -> list[tuple[str, str]]:
    """(name, meaning) of each published data set: where it is looked for, and how many images it has."""
    from gmd_ray.images.layouts import SETS

    return [(f"{name}@ROOT", published.describe()) for name, published in SETS.items()]


TEACHERS = "teachers"
CATALOGUES: dict[str, Callable[[], list[tuple[str, str]]]] = {
    "metrics": metrics,
    "presets": presets,
    "degradations": degradations,
    "sets": sets,
}


def table(what: str) -> str:
    """One catalogue as text: a line for each name, with its meaning in a second column."""
    rows = CATALOGUES[what]()
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


def _value(value: Any) -> str:
    return f"[{value[0]:g}, {value[1]:g}]" if isinstance(value, tuple) else str(value)

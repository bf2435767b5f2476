"""The settings of the teacher that a sweep compares, as the command line names them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from gmd_ray.config import TeacherConfig
from gmd_ray.config.sections.teacher import InjectionConfig
from gmd_ray.errors import ConfigError, nearest

FIFTH = 0.2
"""Share of the reconstruction's intervals that the injection takes at first."""
INJECTIONS = {
    "none": InjectionConfig(blocks="all", tokens="image", steps=0),
    "late": InjectionConfig(blocks="last:0.5", tokens="image", steps=FIFTH),
    "all": InjectionConfig(blocks="all", tokens="image", steps=FIFTH),
    "all-always": InjectionConfig(blocks="all", tokens="image", steps=None),
}
"""Injections of keys and values: in no block, in the later half of all blocks or in all blocks for the first fifth of
the reconstruction, and in all blocks for all of it."""
AXES = {"strength": ("0.3", "0.6", "1"), "injection": tuple(INJECTIONS), "steps": ("2", "4", "8")}
"""Axis -> the values that it has by default."""
MOST = 24
"""Points of a grid at most: each takes all photos through the teacher once."""


@dataclass(frozen=True)
class GridPoint:
    """One combination of settings."""

    name: str
    """Such as `strength 0.3, injection all`."""
    teacher: TeacherConfig
    words: str
    """The settings as the command line takes them."""


def parse_grid(text: str, teacher: TeacherConfig) -> list[GridPoint]:
    """Read axes such as `strength,injection` or `strength=0.3/0.6,steps=4`, and combine their values.

    Args:
        text: names of `AXES`, separated by commas; values follow a `=`, separated by slashes.
        teacher: the settings, of which each point changes those on its axes.

    Raises:
        ConfigError: an unknown axis, a value that the axis does not take, or too many points.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for part in text.split(","):
        name, sign, values = (word.strip() for word in part.partition("="))
        if name not in AXES:
            raise ConfigError(f"--sweep: no axis {name!r}; {nearest(name, AXES)}")
        axes[name] = tuple(value.strip() for value in values.split("/")) if sign else AXES[name]
    points = [_point(dict(zip(axes, values, strict=True)), teacher) for values in itertools.product(*axes.values())]
    if len(points) > MOST:
        raise ConfigError(f"--sweep: {len(points)} combinations, {MOST} at most; name fewer, as strength=0.3/0.6")
    return points


def _point(values: dict[str, str], teacher: TeacherConfig) -> GridPoint:
    words = []
    for axis, value in values.items():
        if axis == "injection":
            if value not in INJECTIONS:
                raise ConfigError(f"--sweep: no injection {value!r}; {nearest(value, INJECTIONS)}")
            found = INJECTIONS[value]
            teacher = replace(teacher, injection=found)
            steps = "null" if found.steps is None else f"{found.steps:g}"
            keys = {"blocks": found.blocks, "tokens": found.tokens, "steps": steps}
            words += [f"teacher.injection.{key}={setting}" for key, setting in keys.items()]
        elif axis == "strength":
            teacher = replace(teacher, strength=_number(axis, value, 0, 1))
            words.append(f"teacher.strength={value}")
        else:
            teacher = replace(teacher, steps=int(_number(axis, value, 0, 1000)))
            words.append(f"teacher.steps={value}")
    return GridPoint(", ".join(f"{axis} {value}" for axis, value in values.items()), teacher, " ".join(words))


def _number(axis: str, value: str, above: float, most: float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = above
    if not above < number <= most or (axis == "steps" and number != int(number)):
        kind = "a whole number" if axis == "steps" else "a number"
        raise ConfigError(f"--sweep: {axis}={value}: {kind} above {above:g}, at most {most:g}")
    return number

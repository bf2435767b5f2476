"""The declaration of one setting: its default, what it may be, and its description, all on the field of a dataclass."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_KEY = "setting"


@dataclass(frozen=True)
class Rule:
    """The description of a setting, and what its value may be. None is allowed if the type of the field names it."""

    help: str
    """The description that `gmd-ray config --explain` prints."""
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[str, ...] = ()
    """The values that a text may have, and that each text of a list may have; empty: any."""
    unique: bool = False
    """A list holds no value twice."""
    check: Callable[[Any], str | None] | None = None
    """Says what is wrong with a value that ranges and choices cannot describe; None if it is right. With `choices`, it
    is asked about the values that are not among them."""
    path: bool = False
    """A local path, which must exist; a URL is not looked up."""
    kind: str = ""
    """The values it may have, in words; needed only if type, range and choices do not say it."""
    published: bool = False
    """A path that may also name a published data set, `SET/SPLIT/SIDE@ROOT`."""

    @property
    def interval(self) -> str:
        """The range of a number in the usual notation, as `[0, 1)`; empty if the setting has none."""
        if self.ge is self.gt is self.le is self.lt is None:
            return ""
        low = f"[{self.ge}" if self.ge is not None else f"({-math.inf if self.gt is None else self.gt}"
        high = f"{self.le}]" if self.le is not None else f"{math.inf if self.lt is None else self.lt})"
        return f"{low}, {high}"

    def inside(self, value: float) -> bool:
        """Tell whether a number lies in the range. NaN and the infinities lie in none."""
        return (
            math.isfinite(value)
            and (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


def setting(default: Any, text: str, **rule: Any) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: the value if no source sets it; a list or mapping is copied for each Config.
        text: the description, in whole phrases that stand without the name.
        rule: the fields of `Rule` but `help`, such as `ge=1` or `choices=("a", "b")`.
    """
    metadata = {_KEY: Rule(text, **rule)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=functools.partial(copy.deepcopy, default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(schema: type, **defaults: Any) -> Any:
    """A dataclass field that is a section of further settings; its description is the docstring of `schema`.

    Args:
        defaults: the settings of the section that have other defaults here.
    """
    return dataclasses.field(default_factory=functools.partial(schema, **defaults))


def rule_of(item: dataclasses.Field[Any]) -> Rule:
    """The rule of a field that was declared with `setting`."""
    rule = item.metadata[_KEY]
    assert isinstance(rule, Rule)
    return rule


@functools.cache
def types_of(schema: type) -> dict[str, Any]:
    """The type of each field of a dataclass by name; reading the annotations takes long enough to be done once."""
    return typing.get_type_hints(schema)

"""The blocks of a FLUX transformer by name, and those that `teacher.injection.blocks` selects."""

from __future__ import annotations

from collections.abc import Sequence

from gmd_ray.errors import ConfigError, nearest
from gmd_ray.teachers.injection import last_blocks

LATE_SINGLE = 20
"""First single block of the group `late_single`: RF-Solver-Edit injects into single blocks 20 and up."""


def block_names(double: int, single: int) -> list[str]:
    """`transformer_blocks.0` ... `single_transformer_blocks.0` ..., in the order of the forward pass."""
    names = [f"transformer_blocks.{i}" for i in range(double)]
    return names + [f"single_transformer_blocks.{i}" for i in range(single)]


def select_blocks(names: Sequence[str], spec: str | Sequence[str]) -> list[str]:
    """The names of the blocks that `teacher.injection.blocks` selects.

    Args:
        names: all block names of the model.
        spec: all, double, single, late_single (single blocks 20 and up), last:SHARE (a share of depth, double and
            single blocks together), or a list of names.

    Raises:
        ConfigError: for an unknown name, or a group that is empty in this model.
    """
    if (last := last_blocks(names, spec)) is not None:
        return last
    single = [n for n in names if n.startswith("single_")]
    groups = {
        "all": list(names),
        "double": [n for n in names if not n.startswith("single_")],
        "single": single,
        "late_single": single[LATE_SINGLE:],
    }
    if isinstance(spec, str):
        if spec not in groups:
            raise ConfigError(f"teacher.injection.blocks={spec!r}: {nearest(spec, groups)}, or a list of block names")
        if not groups[spec]:
            raise ConfigError(
                f"teacher.injection.blocks={spec}: this model has {len(single)} single blocks, none of that group; "
                "use all, single, double, last:SHARE or a list"
            )
        return groups[spec]
    for name in spec:
        if name not in names:
            raise ConfigError(f"teacher.injection.blocks: no block {name!r}; {nearest(name, names)}")
    return list(spec)

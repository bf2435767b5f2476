"""The verb `preview`: a few photos through the real stages, before any money is spent."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from gmd_ray.config.places import below
from gmd_ray.config.validate import validate
from gmd_ray.destinations import writing
from gmd_ray.errors import ConfigError
from gmd_ray.terminal import say
from gmd_ray.verbs.arguments import Verbs, count
from gmd_ray.verbs.settings import load_settings

PHOTOS = 16
SIDE = 512
"""Pixels of the square on which the settings of a grid are tried out by the cost model, which knows all their rules."""


def register(verbs: Verbs) -> None:
    """Add preview."""
    text = "take a few photos through the real stages, and show what the run would make, take and cost"
    preview = verbs.add("preview", run_preview, text, [verbs.settings])
    preview.add_argument(
        "--photos", type=count, default=PHOTOS, metavar="N", help=f"photos, and source pairs; {PHOTOS} by default"
    )
    preview.add_argument(
        "--sweep",
        metavar="AXES",
        help="compare settings of the teacher on them: strength, injection, steps, separated by commas; values are "
        "given as strength=0.3/0.6",
    )
    preview.add_argument("--to", metavar="FILE", help="the page; default: preview.html in the run directory")


def run_preview(args: argparse.Namespace) -> int:
    cfg = load_settings(args, "plan", "generate")
    if args.to is None and "://" in cfg.out:
        raise ConfigError(f"preview: out={cfg.out} is a URL; give --to FILE for the page")
    from gmd_ray.preview.grid import parse_grid
    from gmd_ray.teachers import estimate_teacher

    grid = parse_grid(args.sweep, cfg.teacher) if args.sweep is not None else []
    for point in grid:
        with _named(point.name):
            validate(replace(cfg, teacher=point.teacher), check_paths=False)
            estimate_teacher(point.teacher).image(SIDE, SIDE)
    cfg = replace(cfg, ray=replace(cfg.ray, enabled=False))

    from gmd_ray.preview import make_page, preview
    from gmd_ray.ready import ready
    from gmd_ray.storage import write_bytes

    inputs = ready(cfg, "plan", save=False, probes=True)
    to = args.to or below(cfg.out, "preview.html")
    with writing("--to", to, folder=False):
        found = preview(cfg, args.photos, grid, inputs=inputs)
        write_bytes(to, make_page(found).encode())
    say(f"page     {to}")
    return 0


@contextmanager
def _named(point: str) -> Iterator[None]:
    """Say which point of the grid is refused."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"--sweep, {point}: {error}") from error

"""`gmd-ray ablate`: a sweep over one base run."""

from __future__ import annotations

import argparse
import logging
import re
from dataclasses import replace
from pathlib import Path

from gmd_ray.config.load import resolved
from gmd_ray.errors import ConfigError
from gmd_ray.terminal import say, show
from gmd_ray.verbs.arguments import Verbs, count
from gmd_ray.verbs.settings import load_settings

log = logging.getLogger("gmd_ray")


def register(verbs: Verbs) -> None:
    """Add ablate."""
    text = "a sweep of settings x seeds over one run: the paper's ablation tables, or your own"
    parser = verbs.add("ablate", run_ablate, text)
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="name (`--list`) or YAML file of the sweep")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="the base run: preset=NAME, then overrides")
    parser.add_argument("--list", action="store_true", help="print the sweeps that come with the package")
    parser.add_argument("--plan", action="store_true", help="print what the sweep will take, and stop")
    parser.add_argument("--table", action="store_true", help="print the table of the finished cells, and stop")
    text = "make the pairs of every row and measure them, train nothing: a cheap first look at settings of the teacher"
    parser.add_argument("--pairs-only", action="store_true", help=text)
    parser.add_argument("--seeds", type=count, default=3, metavar="N", help="training seeds 0 to N - 1; 3")
    parser.add_argument(
        "--with", dest="given", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the sweep"
    )
    parser.add_argument(
        "--group",
        type=_regex,
        metavar="REGEX",
        help="images whose ids have the same first group count as one in the intervals, such as crops of one photo",
    )


def run_ablate(args: argparse.Namespace) -> int:
    from gmd_ray.ablation.sweep import load_sweep, of_pairs, sweep_names

    if args.list:
        for name in sweep_names():
            say(f"{name:<10} {load_sweep(name, complete=False).title}")
        return 0
    if args.sweep is None or "=" in args.sweep:
        raise ConfigError(f"ablate needs a sweep before the settings: {', '.join(sweep_names())}, or a YAML file")
    sweep = load_sweep(args.sweep, _parameters(args.given))
    sweep = of_pairs(sweep) if args.pairs_only else sweep
    cfg = load_settings(args, "ablate")

    from gmd_ray.ablation.cells import make_cells
    from gmd_ray.ablation.cost import sweep_cost
    from gmd_ray.ablation.figures import collect_figures
    from gmd_ray.ablation.run import run_sweep
    from gmd_ray.ablation.table import save_tables
    from gmd_ray.ray_utils.session import ray_session
    from gmd_ray.ready import ready
    from gmd_ray.tracking import start_run
    from gmd_ray.tracking.client import default_uri

    inputs = ready(cfg, "ablate", save=not args.table)
    cells = make_cells(sweep, args.settings, cfg.out, range(args.seeds))
    folder = str(Path(cfg.out, "tables", sweep.name))
    if args.table:
        show(save_tables(collect_figures(sweep, cells, args.group), folder))
        return 0
    show(sweep_cost(cells, inputs).text())
    for name, what in sweep.left_out.items():
        log.warning("%s is left out: it needs %s", name, what)
    if args.plan:
        return 0

    def save() -> None:
        save_tables(collect_figures(sweep, cells, args.group), folder)

    # The parent run of a sweep is one of its own, also where several sweeps share a folder.
    tracked = replace(cfg, out=folder)
    if cfg.tracking.enabled and cfg.tracking.uri is None:
        tracked = replace(tracked, tracking=replace(cfg.tracking, uri=default_uri(cfg.out)))
    with ray_session(cfg), start_run(tracked, resolved(cfg)) as run:
        run_sweep(sweep, cells, run, inputs=inputs, after=save)
        text = save_tables(collect_figures(sweep, cells, args.group), folder)
        for name in ("table.md", "table.json", "values.parquet"):
            run.artifact(f"{folder}/{name}")
    show(text)
    say(f"table    {folder}/table.md")
    return 0


def _regex(text: str) -> str:
    """A regular expression, for argparse."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: no regular expression ({error})") from error
    return text


def _parameters(given: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise ConfigError(f"--with {text}: give NAME=VALUE")
        found[name] = value
    return found

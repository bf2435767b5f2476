"""Verbs of the model registry, promote, rollback, compare, history and trace; and sync, for what MLflow has missed."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from gmd_ray.config.load import load_config
from gmd_ray.config.places import below, resolve_out
from gmd_ray.errors import ConfigError, ExitCode
from gmd_ray.terminal import say, show
from gmd_ray.text import one_line
from gmd_ray.verbs.arguments import Verbs, count

if TYPE_CHECKING:
    from gmd_ray.config import Config
    from gmd_ray.tracking.versions import ComparedFigure

_VERSION = "models:/NAME@ALIAS, models:/NAME/NUMBER, or a number or alias of tracking.model"


def register(verbs: Verbs) -> None:
    """Add promote, rollback, compare, history, trace and sync."""
    settings = [verbs.settings]
    text = "make a registered version the champion, if the gates hold for the figures that travel with it"
    promote = verbs.add("promote", run_promote, text)
    promote.add_argument("version", metavar="VERSION", help=_VERSION)
    _reason(promote)
    promote.add_argument("--anyway", action="store_true", help="against the gates; the history says so")
    _settings(promote)
    rollback = verbs.add("rollback", run_rollback, "make the previous champion the champion again", settings)
    rollback.add_argument("--to", metavar="NUMBER", help="another version; default: the one with the alias previous")
    _reason(rollback)
    text = "compare the figures of two registered versions, image by image"
    compare = verbs.add("compare", run_compare, text)
    compare.add_argument("first", metavar="A", help=_VERSION)
    compare.add_argument("second", metavar="B", help="the same; gains are those of B over A")
    _json(compare)
    _settings(compare)
    text = "who moved the champion, when, why, and from which run"
    _json(verbs.add("history", run_history, text, settings))
    text = "from a registered version back to its run, its pairs, their photos, the teacher, settings and code"
    trace = verbs.add("trace", run_trace, text)
    trace.add_argument("version", metavar="VERSION", help=_VERSION)
    trace.add_argument("--pairs", type=count, default=10, metavar="N", help="pairs to print; --json prints all")
    _json(trace)
    _settings(trace)
    sync = verbs.add("sync", run_sync, "send MLflow what it has missed of a run while it was away")
    sync.add_argument("run_directory", metavar="DIR", help="run directory, local or URL")
    _settings(sync)


def run_sync(args: argparse.Namespace) -> int:
    """Send what is kept, and register a student that waits for it; the status is 1 if MLflow is still away."""
    from gmd_ray.storage import is_file

    saved = below(args.run_directory, "config.yaml")
    config = [] if any(word.startswith("config=") for word in args.settings) else [f"config={saved}"]
    if config and not is_file(saved):
        config = []
        if not args.settings:
            raise ConfigError(f"{args.run_directory}: no config.yaml there; give the directory of a run")
    cfg = load_config([*config, *args.settings, f"out={args.run_directory}"], check_paths=False)
    from gmd_ray.tracking import register_kept, send_kept

    waiting, unsent = send_kept(cfg)
    decision = None if unsent else register_kept(cfg)
    if waiting or decision is None:
        say(unsent or f"{waiting} entries sent" if waiting else f"{args.run_directory}: MLflow has missed nothing")
    if decision is None:
        return ExitCode.FAILED if unsent else ExitCode.DONE
    for reason in decision.reasons:
        say(reason)
    say(f"version {decision.version} is registered, and {'champion now' if decision.promoted else 'not promoted'}")
    return ExitCode.DONE if decision.promoted else ExitCode.REFUSED


def run_promote(args: argparse.Namespace) -> int:
    cfg = _config(args)
    from gmd_ray.tracking import promote_version

    own = any(word.startswith(("tracking.gates", "tracking.require", "preset=", "config=")) for word in args.settings)
    decision = promote_version(cfg, args.version, args.reason, gates=own, anyway=args.anyway)
    for reason in decision.reasons:
        say(reason)
    say(f"version {decision.version} {'is champion' if decision.promoted else 'is not promoted'}")
    return ExitCode.DONE if decision.promoted else ExitCode.REFUSED


def run_rollback(args: argparse.Namespace) -> int:
    cfg = _config(args)
    from gmd_ray.tracking import rollback

    now, before = rollback(cfg, cfg.tracking.model, args.reason, args.to)
    say(f"{cfg.tracking.model}: version {now} is champion again, in place of {before or 'none'}")
    return 0


def run_compare(args: argparse.Namespace) -> int:
    cfg = _config(args)
    from gmd_ray.tracking import compare_versions, find_version

    first, second = (find_version(cfg, name) for name in (args.first, args.second))
    figures = compare_versions(first, second)
    if args.json:
        document = {"first": first.reference, "second": second.reference, "figures": [f.to_json() for f in figures]}
        show(json.dumps(document, indent=2))
        return 0
    say(f"{second.reference} over {first.reference}")
    for figure in figures:
        say(_line(figure))
    return 0


def run_history(args: argparse.Namespace) -> int:
    cfg = _config(args)
    from gmd_ray.tracking import history

    entries = history(cfg, cfg.tracking.model)
    if args.json:
        show(json.dumps([entry.to_json() for entry in entries], indent=2))
        return 0
    if not entries:
        say(f"{cfg.tracking.model}: nothing was ever promoted or refused")
    for entry in entries:
        facts = entry.to_json()
        over = f" over {entry.before}" if entry.before else ""
        say(f"{facts['when']}  version {entry.version or '-'}{over}: {entry.action}, by {entry.who}: {entry.reason}")
        if entry.run_id:
            say(f"    run {entry.run_id}")
        for gate in entry.gates:
            say(f"    {gate}")
    return 0


def run_trace(args: argparse.Namespace) -> int:
    cfg = _config(args)
    from gmd_ray.tracking import find_version, trace

    found = trace(find_version(cfg, args.version))
    show(json.dumps(found.document, indent=2) if args.json else found.text(args.pairs))
    return 0


def _line(figure: ComparedFigure) -> str:
    facts = figure.to_json()
    means = " -> ".join("-" if mean is None else f"{mean:.4g}" for mean in figure.means)
    direction = " (lower is better)" if figure.lower_is_better else ""
    head = f"{figure.dataset} {figure.metric}{direction}: {means}"
    if figure.difference is None:
        return f"{head}: not compared, {figure.why or 'no image has both'}"
    ends = facts.get("interval")
    interval = "" if ends is None else f" [{ends[0]:+.3g}, {ends[1]:+.3g}]"
    return f"{head}: gain {facts['gain']:+.4g}{interval} (n={facts['n']}), {facts['verdict']}"


def _config(args: argparse.Namespace) -> Config:
    """The settings that say where the registry is. Photos and weights may be elsewhere by now."""
    wrong = [word for word in args.settings if "=" not in word]
    if wrong:
        raise ConfigError(f"{' '.join(wrong)}: settings are given as key=value")
    return load_config([*_of_run(args.settings), *args.settings], check_paths=False)


def _of_run(settings: list[str]) -> list[str]:
    """The registry of the run that `out=` names, from the file of its settings; nothing where that is not there."""
    from gmd_ray.storage import read_bytes

    out = [word.removeprefix("out=") for word in settings if word.startswith("out=")]
    data = read_bytes(below(resolve_out(out[-1]), "config.yaml")) if out else None
    if data is None or any(word.startswith("config=") for word in settings):
        return []
    import yaml

    try:
        tracking = dict((yaml.safe_load(data) or {}).get("tracking") or {})
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"out={out[-1]}: its config.yaml cannot be read ({one_line(error, 200)})") from error
    return [f"tracking.{key}={tracking[key]}" for key in ("uri", "model") if tracking.get(key)]


def _settings(parser: argparse.ArgumentParser) -> None:
    """Settings behind the arguments that a verb has of its own."""
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="tracking.uri=, tracking.model=, out= of a run, config=FILE"
    )


def _reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", required=True, metavar="TEXT", help="why, for those who read the history")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON document for programs")

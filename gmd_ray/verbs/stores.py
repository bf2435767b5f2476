"""Verbs that look into a pair store, or write its accepted pairs for other tools."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from gmd_ray.config.places import below
from gmd_ray.config.secrets import redact
from gmd_ray.destinations import writing
from gmd_ray.errors import ConfigError, ExitCode
from gmd_ray.terminal import say, show, show_json
from gmd_ray.verbs.arguments import Verbs, count
from gmd_ray.verbs.settings import load_settings

if TYPE_CHECKING:
    from gmd_ray.pairstore.audit.image_path import ImagePath
    from gmd_ray.pairstore.status import Status

WATCH_S = 5
"""Seconds between two looks of `status --watch`."""
CLEAR = "\x1b[H\x1b[2J"
"""Clears a terminal."""


def register(verbs: Verbs) -> None:
    """Add export, verify, status and sheet."""
    export = verbs.add("export", run_export, "write the accepted pairs for other tools", [verbs.settings])
    export.add_argument("--to", required=True, metavar="DIR", help="destination folder or URL")
    export.add_argument("--layout", choices=["parquet", "folders"], default="folders")
    text = "check a pair store: corrupt or foreign files, duplicate ids, totals"
    verify = verbs.add("verify", run_verify, text, [verbs.store, verbs.json])
    verify.add_argument("--deep", action="store_true", help="decode every image too")
    text = "say how far a run is, at what rate, what failed, and which process works on it"
    status = verbs.add("status", run_status, text, [verbs.store, verbs.json])
    text = "the way of one image through the stages instead: seconds, models, attempts, error"
    status.add_argument("--image", metavar="ID", help=text)
    text = f"print it again every S seconds, {WATCH_S} by default, until the run has finished"
    status.add_argument("--watch", nargs="?", type=count, const=WATCH_S, metavar="S", help=text)
    text = "write a contact sheet of the best, borderline and worst pairs"
    sheet = verbs.add("sheet", run_sheet, text, [verbs.store, verbs.thresholds])
    sheet.add_argument("--count", type=count, default=6, metavar="N", help="pairs of each kind, 6 by default")
    sheet.add_argument("--to", metavar="FILE", help="the page; default: sheet.html in DIR")


def run_export(args: argparse.Namespace) -> int:
    cfg = load_settings(args)
    from gmd_ray.pairstore.export import export_pairs, last_gate
    from gmd_ray.pairstore.store import store_url

    scorer, store = cfg.scorer, store_url(cfg.out)
    if not any(given.startswith(("preset=", "config=")) for given in args.settings):
        # What is not named is as in the last run, as for `gate` and `sheet`.
        given = {word.partition("=")[0].removeprefix("scorer.") for word in args.settings if word.startswith("scorer.")}
        scorer = last_gate(store, scorer, given)
    with writing("--to", args.to, folder=True):
        count = export_pairs(
            store, args.to, scorer.threshold, args.layout, fidelity=scorer.fidelity, bound=scorer.fidelity_bound
        )
    bound = "" if scorer.fidelity_bound is None else f" and {scorer.fidelity} bound {scorer.fidelity_bound:g}"
    say(f"{count} accepted pairs at threshold {scorer.threshold:g}{bound} written to {args.to} ({args.layout})")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from gmd_ray.pairstore.audit.verify import verify
    from gmd_ray.pairstore.store import find_store

    found = verify(find_store(args.store), args.deep)
    if args.json:
        show_json(found.as_json())
    else:
        show(found)
    return ExitCode.DATA if found.findings else ExitCode.DONE


def run_status(args: argparse.Namespace) -> int:
    from gmd_ray.pairstore.status import read_status
    from gmd_ray.pairstore.store import find_store

    if args.image is not None:
        if args.watch:
            raise ConfigError("status --image: give it without --watch")
        from gmd_ray.pairstore.audit.image_path import read_image_path

        _print(read_image_path(find_store(args.store), args.image), args.json)
        return ExitCode.DONE
    store = find_store(args.store)
    status = read_status(store)
    _print(status, args.json, watched=bool(args.watch))
    try:
        while args.watch and not (status.finished and status.holder is None):
            time.sleep(args.watch)
            status = read_status(store)
            _print(status, args.json, watched=True)
    except KeyboardInterrupt:  # the way to end it: the run itself goes on
        pass
    return ExitCode.DONE


def _print(found: Status | ImagePath, as_json: bool, watched: bool = False) -> None:
    """Print a state; one that is watched takes the place of the one before on a terminal, and a line as JSON."""
    if as_json:
        show_json(found.as_json(), indent=None if watched else 2)
        return
    if watched and sys.stdout.isatty():
        print(CLEAR, end="")
    elif watched:
        print(time.strftime("%Y-%m-%d %H:%M:%S"))
    show(found)
    sys.stdout.flush()


def run_sheet(args: argparse.Namespace) -> int:
    from gmd_ray.pairstore.store import find_store
    from gmd_ray.report.sheet import make_sheet
    from gmd_ray.storage import write_bytes

    page = make_sheet(find_store(args.store), args.threshold, args.fidelity_bound, args.count)
    to = args.to or below(args.store, "sheet.html")
    with writing("--to", to, folder=False):
        write_bytes(to, redact(page).encode())
    say(f"sheet    {to}")
    return 0

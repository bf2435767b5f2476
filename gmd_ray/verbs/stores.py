"""Verbs that look into a pair store, or write its accepted pairs for other tools."""

from __future__ import annotations

import argparse

from gmd_ray.config.places import below
from gmd_ray.config.secrets import redact
from gmd_ray.destinations import writing
from gmd_ray.errors import ExitCode
from gmd_ray.terminal import say, show
from gmd_ray.verbs.arguments import Verbs, count
from gmd_ray.verbs.settings import load_settings


def register(verbs: Verbs) -> None:
    """Add export, verify, status and sheet."""
    export = verbs.add("export", run_export, "write the accepted pairs for other tools", [verbs.settings])
    export.add_argument("--to", required=True, metavar="DIR", help="destination folder or URL")
    export.add_argument("--layout", choices=["parquet", "folders"], default="folders")
    text = "check a pair store: corrupt or foreign files, duplicate ids, totals"
    verify = verbs.add("verify", run_verify, text, [verbs.store])
    verify.add_argument("--deep", action="store_true", help="decode every image too")
    text = "say how far a run is, at what rate, what failed, and which process works on it"
    verbs.add("status", run_status, text, [verbs.store])
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
    show(found)
    return ExitCode.DATA if found.findings else ExitCode.DONE


def run_status(args: argparse.Namespace) -> int:
    from gmd_ray.pairstore.status import read_status
    from gmd_ray.pairstore.store import find_store

    show(read_status(find_store(args.store)))
    return 0


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

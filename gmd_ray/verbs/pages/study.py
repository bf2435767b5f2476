"""The verb `study`: which method's pictures do people prefer? Make the pairs, collect answers, count them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from urllib.parse import urlsplit

from gmd_ray.destinations import writing
from gmd_ray.errors import ConfigError
from gmd_ray.terminal import Parser, say, show
from gmd_ray.text import printable
from gmd_ray.verbs.arguments import Verbs, count
from gmd_ray.verbs.pages.serve import add_address, serving

TASKS = ("restoration", "deblurring", "super-resolution")
LARGE = 100_000_000
"""Bytes above which a page without a server opens slowly on a phone."""


def register(verbs: Verbs) -> None:
    """Add study, with its actions create, serve, export-html and result."""
    text = "a human study: make anonymous pairs of pictures, collect answers, count them"
    study = verbs.add("study", run_create, text)
    actions = study.add_subparsers(dest="action", required=True, metavar="ACTION", parser_class=Parser)
    _add_create(actions.add_parser("create", help="make a study from two or more folders of results"))
    _add_serve(actions.add_parser("serve", help="show the pairs to raters with personal links"))
    export = actions.add_parser("export-html", help="write the study as one HTML file, which needs no server")
    export.add_argument("study", metavar="STUDY", help="folder of a study")
    export.add_argument("--to", required=True, metavar="FILE", help="the page")
    export.set_defaults(run=run_export)
    result = actions.add_parser("result", help="count the answers: win rates, intervals, agreement")
    result.add_argument("study", metavar="STUDY", help="folder of a study")
    result.add_argument("answers", nargs="*", metavar="CSV", help="files that raters of the page without server saved")
    text = "failed attention checks that do not exclude a rater; 0 by default"
    result.add_argument("--allow-failed", type=int, default=0, metavar="N", help=text)
    text = "folder of result.md and result.json; default: private/ in STUDY"
    result.add_argument("--to", metavar="DIR", help=text)
    result.set_defaults(run=run_result)


def _add_create(create: Parser) -> None:
    text = "a method and the folder of its results; results of one photo have one name"
    create.add_argument("methods", nargs="*", metavar="NAME=FOLDER", help=text)
    text = "take the pictures that the evaluation of this run kept for its report"
    create.add_argument("--run", dest="run_dir", metavar="RUN", help=text)
    text = "students of RUN, separated by commas; default: baseline,adapted"
    create.add_argument("--students", default="baseline,adapted", metavar="NAMES", help=text)
    text = "test set of RUN: target (default) or source"
    create.add_argument("--dataset", choices=["target", "source"], default="target", help=text)
    create.add_argument("-o", "--output", required=True, metavar="STUDY", help="folder to make")
    create.add_argument("--title", default="Picture comparison", help="what raters see as the title")
    text = "the text that raters read: restoration (default), deblurring or super-resolution"
    create.add_argument("--task", choices=TASKS, default="restoration", help=text)
    text = "a text of your own instead: the question, a blank line, paragraphs"
    create.add_argument("--instructions", metavar="FILE", help=text)
    text = "seed of sides, order and names; drawn by default, since whoever knows it can tell the methods apart"
    create.add_argument("--seed", type=int, help=text)
    create.add_argument("--limit", type=count, metavar="N", help="number of photos to draw; default: all")
    text = "show the middle N x N pixels of each photo; default: whole photos"
    create.add_argument("--crop", type=count, metavar="N", help=text)
    text = "attention checks of each kind: pairs with a degraded copy, and pairs that come twice; 4 by default"
    create.add_argument("--checks", type=int, default=4, metavar="N", help=text)
    create.set_defaults(run=run_create)


def _add_serve(serve: Parser) -> None:
    serve.add_argument("study", metavar="STUDY", help="folder of a study")
    serve.add_argument("--invite", type=count, default=0, metavar="N", help="make N links: rater 1, rater 2, ...")
    text = "make a link for this rater; may be repeated"
    serve.add_argument("--rater", action="append", default=[], metavar="NAME", help=text)
    text = "write the new links to this file, which only you can read, instead of printing them"
    serve.add_argument("--links", metavar="FILE", help=text)
    text = "address of the study as raters reach it, where a proxy stands in front: https://study.example.org"
    serve.add_argument("--url", metavar="URL", help=text)
    add_address(serve)
    serve.set_defaults(run=run_serve)


def run_create(args: argparse.Namespace) -> int:
    from gmd_ray.study.create import StudyPlan, create_study
    from gmd_ray.study.folder import COMPARISON, load_key
    from gmd_ray.study.instructions import TEXTS, own_text
    from gmd_ray.study.sources import read_methods, read_run

    if args.checks < 0:
        raise ConfigError(f"--checks {args.checks}: give 0 or more")
    if "://" in args.output:
        raise ConfigError(f"-o {args.output}: a study is a folder of this machine; give a path")
    text = own_text(args.instructions) if args.instructions else TEXTS[args.task]
    methods = read_run(args.run_dir, args.students.split(","), args.dataset) if args.run_dir else {}
    for name, pictures in read_methods(args.methods).items():
        if name in methods:
            raise ConfigError(f"{name}: a student of {args.run_dir} has that name too; choose another")
        methods[name] = pictures
    plan = StudyPlan(args.title, text, args.seed, args.limit, args.crop, args.checks, args.checks)
    with writing("-o", args.output, folder=True):
        study = create_study(methods, args.output, plan)
    kinds = [facts.kind for facts in load_key(study).pairs.values()]
    compared = kinds.count(COMPARISON)
    say(f"{len(study.pairs)} pairs: {compared} comparisons, {len(kinds) - compared} attention checks")
    say(f"for raters   {study.folder / 'public'}")
    say(f"for you      {study.folder / 'private' / 'key.json'}: which side is which method; give it to nobody")
    return 0


def run_serve(args: argparse.Namespace) -> int:
    from gmd_ray.serving.server import PageServer
    from gmd_ray.study.answers import AnswerBook
    from gmd_ray.study.folder import load_study
    from gmd_ray.study.site import StudySite

    study = load_study(args.study)
    book = AnswerBook(study)
    name = urlsplit(args.url).hostname if args.url else None
    if args.url and (not name or not args.url.startswith(("http://", "https://"))):
        raise ConfigError(f"--url {args.url}: give it as https://study.example.org")
    if args.links and os.path.lexists(args.links):
        raise ConfigError(f"--links {args.links}: exists already, and its links may be in use; give another file")
    server = PageServer(StudySite(study, book), args.host, args.port, [name] if name else [])
    raters = book.count_raters()
    invited = book.invite([*args.rater, *(f"rater {raters + i}" for i in range(1, args.invite + 1))])
    base = (args.url or server.url).rstrip("/")
    lines = [f"{printable(each.name)}\t{base}/r/{each.token}/" for each in invited]
    if args.links and lines:
        with writing("--links", args.links, folder=False):
            opened = os.open(args.links, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(opened, "w", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        say(f"links    {args.links}")
    else:
        for line in lines:
            print(line.replace("\t", "   "))  # not by `say`, which would hide the token that this line is for
    if not lines and not raters:
        say("nobody has a link yet: give --invite N or --rater NAME")
    return serving(server, f"study    {base}")


def run_export(args: argparse.Namespace) -> int:
    from gmd_ray.study.export_html import export_html
    from gmd_ray.study.folder import load_study

    study = load_study(args.study)
    with writing("--to", args.to, folder=False):
        size = export_html(study, args.to)
    say(f"page     {args.to}: {size / 1e6:.1f} MB, {len(study.pairs)} pairs")
    if size > LARGE:
        say("         large for a phone: make the study with --crop or --limit, or use `gmd-ray study serve`")
    return 0


def run_result(args: argparse.Namespace) -> int:
    from gmd_ray.study.answers import stored_answers
    from gmd_ray.study.csv_answers import read_csv_answers
    from gmd_ray.study.folder import load_key, load_study, private_folder
    from gmd_ray.study.result import study_result
    from gmd_ray.study.tables import result_json, result_markdown

    if args.allow_failed < 0:
        raise ConfigError(f"--allow-failed {args.allow_failed}: give 0 or more")
    study = load_study(args.study)
    key = load_key(study)
    files = read_csv_answers(study, args.answers)
    answers = [*stored_answers(study), *files.answers]
    found = study_result(study, key, answers, allowed_failures=args.allow_failed, left_out=files.left_out)
    markdown = result_markdown(found)
    to = Path(args.to) if args.to else private_folder(study.folder)
    with writing("--to", str(to), folder=True):
        to.mkdir(parents=True, exist_ok=True)
        (to / "result.md").write_text(markdown, encoding="utf-8")
        (to / "result.json").write_text(result_json(found), encoding="utf-8")
    show(markdown)
    say(f"result   {to / 'result.md'}, {to / 'result.json'}")
    return 0

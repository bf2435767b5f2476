"""`gmd-ray VERB [preset=NAME] [key=value ...]`: the same verbs as jobs/, for a person."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from gmd_ray import __version__
from gmd_ray.config import Config
from gmd_ray.config.load import load_config, require, resolved
from gmd_ray.errors import GmdError

log = logging.getLogger("gmd_ray")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Exit status: 0 done, 1 a run that failed, 2 arguments that cannot be used."""
    args = _parser().parse_args(argv)
    _quiet_libraries()
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True
    )
    log.setLevel(logging.INFO)
    try:
        return args.run(args)
    except GmdError as error:
        print(f"gmd-ray: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("gmd-ray: stopped; the same command takes up where this one left off", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gmd-ray", description=__doc__)
    parser.add_argument("--version", action="version", version=f"gmd-ray {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument("settings", nargs="*", metavar="key=value", help="preset=NAME, config=FILE, then overrides")

    def verb(
        name: str, run: Callable[[argparse.Namespace], int], text: str, **kwargs: object
    ) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, **kwargs)  # type: ignore[arg-type]
        sub.set_defaults(run=run)
        return sub

    verb("adapt", _adapt, "the whole run: generate, fine-tune, evaluate, register", parents=[settings])
    plan = verb("plan", _plan, "what a run will take: images, forwards, hours, disk, cost", parents=[settings])
    plan.add_argument("--probe", type=_count, metavar="N", help="measure N images through the real stages first")
    verb("generate", _generate, "Stages 0 to 1b: write the pair store", parents=[settings])
    verb("finetune", _finetune, "Stage 2 on an existing pair store", parents=[settings])
    verb("evaluate", _evaluate, "measure baseline and adapted student, write table and report", parents=[settings])
    verb("config", _config, "print the resolved settings and stop", parents=[settings])
    export = verb("export", _export, "write the accepted pairs for other tools", parents=[settings])
    export.add_argument("--to", required=True, metavar="DIR", help="destination folder or URL")
    export.add_argument("--layout", choices=["parquet", "folders"], default="folders")

    store = argparse.ArgumentParser(add_help=False)
    store.add_argument("store", metavar="DIR", help="run directory or pair store, local or URL")
    view = argparse.ArgumentParser(add_help=False)
    view.add_argument("--threshold", type=float, metavar="T", help="of the gate; default: the last run's")
    view.add_argument("--fidelity-bound", type=float, metavar="F", help="second opinion, on the store's fidelity")
    check = verb("verify", _verify, "name torn, foreign and double rows, recount the books", parents=[store])
    check.add_argument("--deep", action="store_true", help="decode every image too")
    verb("status", _status, "how far a run is, at what rate, what failed, who is at work", parents=[store])
    gate = verb("gate", _gate, "how many pairs each threshold would admit; nothing is generated", parents=[store, view])
    gate.add_argument("--html", metavar="FILE", help="write the curve and the histogram as one page")
    sheet = verb("sheet", _sheet, "a contact sheet of the best, borderline and worst pairs", parents=[store, view])
    sheet.add_argument("--count", type=_count, default=6, metavar="N", help="pairs of each kind, 6 by default")
    sheet.add_argument("--to", metavar="FILE", help="the page; default: sheet.html in DIR")

    listing = verb("ls", _list, "list what can be named in the settings")
    listing.add_argument("what", choices=["metrics", "presets", "degradations"])
    demo = verb("demo", _demo, "make the toy world's models")
    demo.add_argument("action", choices=["train-models"])
    demo.add_argument("--to", required=True, metavar="DIR", help="where teacher/, student.safetensors and scorer/ go")
    demo.add_argument("--only", choices=["teacher", "student", "scorer"], help="train one of the three")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number of at least 1")
    return int(text)


def _load(args: argparse.Namespace) -> Config:
    from gmd_ray.quality import known_metrics

    cfg = load_config(args.settings, known_metrics=known_metrics)
    if cfg.source.degradation is not None:
        from gmd_ray.images.degradations import make_degradation

        make_degradation(cfg.source.degradation, cfg.source.degradation_args)
    return cfg


def _adapt(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import adapt

    result = adapt(cfg)
    print(result.table)
    for reason in result.reasons:
        print(reason)
    print(f"student  {result.student}")
    print(f"report   {result.report}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.generation.plan import make_plan, survey
    from gmd_ray.generation.probe import run_probe
    from gmd_ray.generation.spent import NAME
    from gmd_ray.generation.store import PairStore, store_url
    from gmd_ray.session import ray_session

    require(cfg, "generate" if args.probe else "plan")
    settle(cfg)
    jobs, unreadable = survey(cfg)
    probe = None
    if args.probe:
        with ray_session(cfg):
            probe = run_probe(cfg, jobs, args.probe)
    plan = make_plan(cfg, jobs, unreadable, probe)
    PairStore(store_url(cfg.out)).write(NAME, plan.as_json())
    print(plan.table())
    return 0


def _generate(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.generation import generate
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run

    require(cfg, "generate")
    settle(cfg)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("generate") as recorder:
        print(generate(cfg, recorder))
    return 0


def _finetune(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run
    from gmd_ray.training import finetune

    require(cfg, "finetune")
    settle(cfg)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run:
        for name in ["adapted", *cfg.controls]:
            with run.stage(f"finetune-{name}") as recorder:
                print(finetune(cfg, name, recorder).path)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.adapt import settle
    from gmd_ray.evaluation import evaluate, write_report
    from gmd_ray.session import ray_session
    from gmd_ray.tracking import start_run
    from gmd_ray.training import finetuned_path

    require(cfg, "evaluate")
    settle(cfg)
    students = {"baseline": str(cfg.student.path)}
    for name in ["adapted", *cfg.controls]:
        path = finetuned_path(cfg, name)
        if Path(path).is_file():
            students[name] = path
        else:
            log.info("%s: no fine-tuned student at %s; left out", name, path)
    with ray_session(cfg), start_run(cfg, resolved(cfg)) as run, run.stage("evaluate") as recorder:
        evaluation = evaluate(cfg, students, recorder)
        print(evaluation.table())
        print(f"report   {write_report(cfg, evaluation, recorder)}")
    return 0


def _config(args: argparse.Namespace) -> int:
    import yaml

    print(yaml.safe_dump(resolved(_load(args)), sort_keys=False), end="")
    return 0


def _export(args: argparse.Namespace) -> int:
    cfg = _load(args)
    from gmd_ray.generation import export_pairs

    store = f"{cfg.out}/pairs"
    scorer = cfg.scorer
    count = export_pairs(
        store, args.to, scorer.threshold, args.layout, fidelity=scorer.fidelity, bound=scorer.fidelity_bound
    )
    bound = "" if scorer.fidelity_bound is None else f" and {scorer.fidelity} bound {scorer.fidelity_bound:g}"
    print(f"{count} accepted pairs at threshold {scorer.threshold:g}{bound} written to {args.to} ({args.layout})")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from gmd_ray.generation.store import find_store
    from gmd_ray.generation.verify import verify

    found = verify(find_store(args.store), args.deep)
    print(found)
    return 1 if found.findings else 0


def _status(args: argparse.Namespace) -> int:
    from gmd_ray.generation.status import read_status
    from gmd_ray.generation.store import find_store

    print(read_status(find_store(args.store)))
    return 0


def _gate(args: argparse.Namespace) -> int:
    from gmd_ray.generation.gate import read_gate
    from gmd_ray.generation.store import find_store

    view = read_gate(find_store(args.store), args.threshold, args.fidelity_bound)
    print(view.text())
    if args.html:
        from gmd_ray.evaluation.files import write_bytes
        from gmd_ray.evaluation.gate_page import gate_page

        write_bytes(args.html, gate_page(view).encode())
        print(f"\npage     {args.html}")
    return 0


def _sheet(args: argparse.Namespace) -> int:
    from gmd_ray.evaluation.files import write_bytes
    from gmd_ray.evaluation.sheet import make_sheet
    from gmd_ray.generation.store import find_store

    page = make_sheet(find_store(args.store), args.threshold, args.fidelity_bound, args.count)
    to = args.to or f"{args.store.rstrip('/')}/sheet.html"
    write_bytes(to, page.encode())
    print(f"sheet    {to}")
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.what == "metrics":
        from gmd_ray.quality import known_metrics

        names = list(known_metrics())
    elif args.what == "degradations":
        from gmd_ray.images.degradations import PRESETS

        names = sorted(PRESETS)
    else:
        from gmd_ray.config.load import preset_names

        names = list(preset_names())
    print("\n".join(names))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from gmd_ray.demo.train_models import train_models

    train_models(args.to, args.only)
    return 0


def _quiet_libraries() -> None:
    """Notices of libraries that a user can do nothing about; each was seen in a run of this tool."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.filterwarnings("ignore")


if __name__ == "__main__":
    sys.exit(main())

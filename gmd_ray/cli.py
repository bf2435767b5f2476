"""`gmd-ray VERB [preset=NAME] [key=value ...]`: the same verbs as jobs/, for a person."""

from __future__ import annotations

import argparse
import contextlib
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
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it, for a team's own module in student.factory
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
    verb("generate", _generate, "Stages 0 to 1b: write the pair store", parents=[settings])
    verb("finetune", _finetune, "Stage 2 on an existing pair store", parents=[settings])
    verb("evaluate", _evaluate, "measure baseline and adapted student, write table and report", parents=[settings])
    verb("config", _config, "print the resolved settings and stop", parents=[settings])
    export = verb("export", _export, "write the accepted pairs for other tools", parents=[settings])
    export.add_argument("--to", required=True, metavar="DIR", help="destination folder or URL")
    export.add_argument("--layout", choices=["parquet", "folders"], default="folders")
    restore = verb("restore", _restore, "restore a folder of photos with a student", parents=[settings])
    restore.add_argument("-i", "--input", required=True, metavar="IN", help="photo, or folder or URL, read recursively")
    restore.add_argument("-o", "--output", required=True, metavar="OUT", help="folder or URL of the results")
    restore.add_argument("-m", "--model", required=True, metavar="MODEL", help="the student, as student.path=")
    restore.add_argument("-t", "--tile", type=int, metavar="N", help="side of tiles in input pixels, as student.tile=")
    restore.add_argument("--suffix", default="", help="put behind each file's stem")
    restore.add_argument("--ext", default="auto", help="auto (each photo's own), png, jpg, tif, webp, ...")
    new = verb("new-student", _new_student, "make an untrained latent diffusion student, for pretraining")
    new.add_argument("preset", help="ldm-1.3b or ldm-tiny")
    new.add_argument("--to", required=True, metavar="DIR", help="directory to make")
    new.add_argument("--vae", metavar="DIR", help="trained AutoencoderKL; without it ldm-tiny gets a random one")
    new.add_argument("--scale", type=int, default=1, help="output side over input side")
    new.add_argument("--steps", type=int, default=4, help="sampling steps it is to be used with")
    new.add_argument("--seed", type=int, default=0)
    listing = verb("ls", _list, "list what can be named in the settings")
    listing.add_argument("what", choices=["metrics", "presets", "degradations"])
    demo = verb("demo", _demo, "make the toy world's models")
    demo.add_argument("action", choices=["train-models"])
    demo.add_argument("--to", required=True, metavar="DIR", help="where teacher/, student.safetensors and scorer/ go")
    demo.add_argument("--only", choices=["teacher", "student", "scorer"], help="train one of the three")
    return parser


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
        if Path(path).exists():
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
    count = export_pairs(store, args.to, cfg.scorer.threshold, args.layout)
    print(f"{count} accepted pairs at threshold {cfg.scorer.threshold:g} written to {args.to} ({args.layout})")
    return 0


def _restore(args: argparse.Namespace) -> int:
    # The overlap is measured, unless the settings that follow name one.
    tile = [] if args.tile is None else [f"student.tile={args.tile}", "student.tile_overlap=null"]
    cfg = load_config([f"student.path={args.model}", *tile, *args.settings])
    from gmd_ray.restore import restore_folder
    from gmd_ray.session import cluster_address, ray_session

    on_ray = cluster_address(cfg) is not None
    with ray_session(cfg) if on_ray else contextlib.nullcontext():
        done = restore_folder(cfg, args.input, args.output, suffix=args.suffix, ext=args.ext, on_ray=on_ray)
    print(f"{done.count} of {done.count + len(done.failed)} images restored to {args.output}")
    for name, reason in done.failed.items():
        print(f"gmd-ray: {name}: {reason}", file=sys.stderr)
    return 1 if done.failed else 0


def _new_student(args: argparse.Namespace) -> int:
    from gmd_ray.students.latent_presets import new_student

    vae = Path(args.vae) if args.vae else None
    count = new_student(args.preset, Path(args.to), vae, args.scale, args.steps, args.seed)
    print(f"{args.preset}: {count / 1e6:,.1f} M untrained parameters in {args.to}")
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

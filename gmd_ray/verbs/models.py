"""Verbs that make or fetch models and their inputs: students, prompt embeddings, metric weights, demo models."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from gmd_ray.destinations import writing
from gmd_ray.errors import ConfigError
from gmd_ray.terminal import say
from gmd_ray.verbs.arguments import Verbs, count
from gmd_ray.verbs.settings import load_settings


def register(verbs: Verbs) -> None:
    """Add new-student, encode-prompts, fetch and demo."""
    text = "make an untrained latent diffusion student, for pretraining"
    new = verbs.add("new-student", run_new_student, text)
    new.add_argument("preset", help="ldm-1.3b or ldm-tiny")
    new.add_argument("--to", required=True, metavar="DIR", help="directory to make")
    new.add_argument("--vae", metavar="DIR", help="trained AutoencoderKL; without it ldm-tiny gets a random one")
    new.add_argument("--scale", type=int, default=1, help="output side over input side")
    new.add_argument("--steps", type=int, default=4, help="sampling steps it is to be used with")
    new.add_argument("--seed", type=int, default=0)
    text = "encode the prompts of the teacher, on this CPU"
    encode = verbs.add("encode-prompts", run_encode_prompts, text, [verbs.settings])
    encode.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="another prompt; may be repeated")
    encode.add_argument("--to", metavar="DIR", help="destination folder or URL; default <out>/prompts")
    text = "bring the weights of metrics or models to this node, or to a store, ahead of a run"
    fetch = verbs.add("fetch", run_fetch, text)
    text = "a metric, as `gmd-ray ls metrics` names it; or a model: its URL, hub id (owner/name) or path with a slash"
    fetch.add_argument("weights", nargs="+", metavar="WEIGHTS", help=text)
    text = (
        "folder or URL: the weights directory of metrics (default: torch's hub directory), or where one model is copied"
    )
    fetch.add_argument("--to", metavar="PLACE", help=text)
    demo = verbs.add("demo", run_demo, "train the models of the demo anew")
    demo.add_argument("action", choices=["train-models"])
    demo.add_argument("--to", required=True, metavar="DIR", help="where teacher/, student.safetensors and scorer/ go")
    text = "models of the photographs (default; needs --photos) or of the toy world, which is drawn by code"
    demo.add_argument("--world", choices=["photos", "toy"], default="photos", help=text)
    demo.add_argument("--photos", metavar="DIR", help="photographs to train on; none of those of `make demo`")
    demo.add_argument("--only", choices=["teacher", "student", "scorer"], help="train one of the three")
    text = "of the photographs' teacher: auto (default), cpu or cuda; the other two are trained on the CPU"
    demo.add_argument("--device", default="auto", help=text)
    text = "steps of each training instead of the recipe's; the schedule shrinks with them"
    demo.add_argument("--steps", type=count, help=text)
    text = "images a step instead of the recipe's; `--only teacher --batch 32` is for CPUs"
    demo.add_argument("--batch", type=count, help=text)


def run_new_student(args: argparse.Namespace) -> int:
    from gmd_ray.students.latent.presets import new_latent_student

    vae = Path(args.vae) if args.vae else None
    with writing("--to", args.to, folder=True):
        count = new_latent_student(args.preset, Path(args.to), vae, args.scale, args.steps, args.seed)
    say(f"{args.preset}: {count / 1e6:,.1f} M untrained parameters in {args.to}")
    return 0


def run_encode_prompts(args: argparse.Namespace) -> int:
    cfg = load_settings(args, "encode-prompts")
    from gmd_ray.generation.prompts import prompts_folder
    from gmd_ray.teachers import encode_prompts

    to = args.to or prompts_folder(cfg.out)
    with writing("--to" if args.to else "out:", to, folder=True):
        found = encode_prompts(cfg.teacher, to, args.prompt)
    if found is cfg.teacher:
        say(f"{cfg.teacher.path}: the table beside the weights has every prompt; nothing to encode")
    else:
        say(f"teacher.prompt_embeddings={found.prompt_embeddings}")
    return 0


def run_fetch(args: argparse.Namespace) -> int:
    models = [name for name in args.weights if "/" in name]
    metrics = [name for name in args.weights if "/" not in name]
    if args.to and models and len(args.weights) > 1:
        raise ConfigError("fetch: --to takes one model, or metrics alone; give one command for each")
    for model in models:
        _fetch_model(model, args.to)
    if metrics:
        _fetch_metrics(metrics, args.to)
    return 0


def _fetch_model(model: str, to: str | None) -> None:
    """Copy a model to this node, and from here to another place."""
    from gmd_ray.weights import is_stored, publish, verified_copy

    here = Path(model).expanduser()
    if is_stored(model):
        here, _ = verified_copy(model)
    elif not here.exists():
        from gmd_ray.teachers.directory import MODEL_FOLDERS, TEXT_FOLDERS, model_directory

        here = model_directory(model, MODEL_FOLDERS + TEXT_FOLDERS)
    elif to is None:
        raise ConfigError(f"fetch {model}: it is on this machine already; --to PLACE copies it to a store")
    if to is None:
        say(str(here))
        return
    with writing("--to", to, folder=here.is_dir()):
        copied = publish(here, to)
    say(f"{to}: {copied} file{'s' * (copied != 1)} copied, and the checksums of all")


def _fetch_metrics(metrics: list[str], to: str | None) -> None:
    """Download the weight files of metrics to this machine, or by way of it to a URL."""
    from gmd_ray.quality.fetch import fetch
    from gmd_ray.weights import publish

    if to is None or "://" not in to:
        for path in fetch(metrics, to):
            say(str(path))
        return
    with tempfile.TemporaryDirectory(prefix="gmd-ray-") as folder:
        for path in fetch(metrics, folder):
            if not path.is_relative_to(folder):
                say(f"{path}: the only place where its metric looks for it, on every node")
        copied = publish(Path(folder), to)
    say(f"{to}: {copied} file{'s' * (copied != 1)} copied, and the checksums of all")


def run_demo(args: argparse.Namespace) -> int:
    from gmd_ray.demo.train_models import TrainingBudget, train_models

    budget = TrainingBudget(args.steps, args.batch) if args.steps or args.batch else None
    with writing("--to", args.to, folder=True):
        train_models(args.to, args.world, args.photos, args.only, args.device, budget)
    return 0

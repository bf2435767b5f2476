"""The verb `serve`: a run in the browser."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gmd_ray.errors import ConfigError
from gmd_ray.terminal import Parser, say
from gmd_ray.verbs.arguments import Verbs

if TYPE_CHECKING:
    from gmd_ray.config import Config
    from gmd_ray.serving.drop_zone import RestorePhoto
    from gmd_ray.serving.run_site import RunSite
    from gmd_ray.serving.server import PageServer


def register(verbs: Verbs) -> None:
    """Add serve."""
    text = "show a run in the browser: report, pairs, and a place to drop photos for its adapted student"
    serve = verbs.add("serve", run_serve, text)
    serve.add_argument("run_dir", metavar="RUN", help="run directory, on this machine")
    serve.add_argument("--device", metavar="NAME", help="device of the student: auto, cpu or cuda; default: the run's")
    add_address(serve)


def add_address(parser: Parser) -> None:
    """Add --host and --port."""
    text = "address to listen on; default: this machine alone (127.0.0.1)"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=8765, help="8765 by default; 0 takes a free one")


def serving(server: PageServer, line: str) -> int:
    """Say where the server is, and answer until Ctrl-C."""
    print(f"{line}\nCtrl-C ends it", flush=True)  # not by `say`, which would hide a token
    try:
        server.serve_forever(poll_interval=0.5)
    finally:
        server.server_close()
    return 0


def run_serve(args: argparse.Namespace) -> int:
    from gmd_ray.serving.server import PageServer, is_loopback, new_token

    token = "" if is_loopback(args.host) else new_token()
    site = run_site(args.run_dir, token, args.device)
    server = PageServer(site, args.host, args.port)
    for part, what in ((site.pairs, "pair store"), (site.photos, "adapted student")):
        if part is None:
            say(f"{args.run_dir} has no {what} yet: left out")
    return serving(server, f"run      {server.url}/{f'{token}/' if token else ''}")


def run_site(run_dir: str, token: str = "", device: str | None = None) -> RunSite:
    """The site of a run directory.

    Args:
        run_dir: on this machine; it may have been copied there from another one.
        token: begins every path; none for an empty one.
        device: `student.device`; None takes the run's.

    Raises:
        ConfigError: it is no run directory.
    """
    from gmd_ray.config.load import load_config
    from gmd_ray.pairstore.store import PairStore, store_url
    from gmd_ray.serving.drop_zone import DropZone
    from gmd_ray.serving.pair_list import PairList
    from gmd_ray.serving.run_site import RunSite
    from gmd_ray.serving.server import token_hash

    if "://" in run_dir:
        raise ConfigError(f"serve {run_dir}: shows a run directory of this machine; copy it here first")
    run = Path(run_dir).expanduser().absolute()
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{run_dir}: no run directory, as it holds no config.yaml; give out= of a run")
    settings = [f"config={run / 'config.yaml'}", f"out={run}", *([f"student.device={device}"] if device else [])]
    cfg = load_config(settings, check_paths=False)
    store = PairStore(store_url(str(run)))
    pairs = PairList(store, cfg.scorer.threshold, cfg.scorer.fidelity_bound) if store.exists() else None
    adapted = _adapted(cfg)
    photos = None if adapted is None else DropZone(lambda: _restorer(cfg, adapted), cfg.target.max_pixels)
    return RunSite(run.name, run / "report.html", pairs, photos, token_hash(token) if token else None)


def _adapted(cfg: Config) -> str | None:
    """The checkpoint of the adapted student; None where the run has none yet."""
    from gmd_ray.training import finetuned_path

    path = finetuned_path(cfg, "adapted") if cfg.student.path else None
    return path if path is not None and Path(path).exists() else None


def _restorer(cfg: Config, path: str) -> RestorePhoto:
    from gmd_ray.folders.restore_worker import Restorer

    return Restorer(replace(cfg.student, path=path), cfg.target.max_pixels).restore_photo

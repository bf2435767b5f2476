"""The verb `gate`: how many pairs each threshold admits, and whether the score can tell good images from bad ones."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING

from gmd_ray.config.places import above, below
from gmd_ray.config.secrets import redact
from gmd_ray.destinations import writing
from gmd_ray.errors import ConfigError, DataError, ExitCode
from gmd_ray.terminal import say, show, show_json
from gmd_ray.verbs.arguments import Verbs, count
from gmd_ray.verbs.settings import load_settings

if TYPE_CHECKING:
    from gmd_ray.config import Config
    from gmd_ray.pairstore.store import PairStore
    from gmd_ray.quality import Scorer
    from gmd_ray.quality.calibration.calibration import StoreScores

LIMIT = 200
"""Images of each group that a calibration scores."""


def register(verbs: Verbs) -> None:
    """Add gate."""
    text = "say how many pairs each threshold would admit, or calibrate the score"
    gate = verbs.add("gate", run_gate, text, [verbs.thresholds, verbs.json])
    gate.add_argument("store", nargs="?", metavar="DIR", help="run directory or pair store, local or URL")
    gate.add_argument("--html", metavar="FILE", help="write the curve and the histogram as one page")
    gate.add_argument(
        "--calibrate",
        action="store_true",
        help="score clean, degraded and pseudo-target images, and propose a threshold; key=value settings are those of "
        "the run, by default DIR/config.yaml",
    )
    gate.add_argument(
        "--limit", type=count, default=LIMIT, metavar="N", help=f"images of each group; {LIMIT} by default"
    )
    gate.set_defaults(settings=[])


def run_gate(args: argparse.Namespace) -> int:
    if args.calibrate:
        return _calibrate(args)
    from gmd_ray.pairstore.store import find_store
    from gmd_ray.pairstore.thresholds import read_gate

    if args.store is None or args.settings:
        raise ConfigError("gate: give the directory of one run; settings are for --calibrate alone")
    view = read_gate(find_store(args.store), args.threshold, args.fidelity_bound)
    if args.json:
        show_json(view.as_json())
    else:
        show(view.text())
    if args.html:
        from gmd_ray.report.gate_page import gate_page
        from gmd_ray.storage import write_bytes

        with writing("--html", args.html, folder=False):
            write_bytes(args.html, redact(gate_page(view)).encode())
        if not args.json:
            show("")
            say(f"page     {args.html}")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    """Print the calibration; the status is REFUSED where no threshold can be proposed."""
    store, settings = _words(args)
    from gmd_ray.pairstore.store import find_store

    found = None if store is None else find_store(store)  # before anything is loaded
    args.settings = settings
    cfg = load_settings(args)
    if cfg.prepare and not os.path.exists(cfg.source.hq or ""):
        raise ConfigError(f"source.hq={cfg.source.hq}: is drawn when a run starts; calibrate after it")

    from gmd_ray.images.sets.run_inputs import RunInputs
    from gmd_ray.progress import Progress
    from gmd_ray.quality import load_scorer
    from gmd_ray.quality.calibration import pairs
    from gmd_ray.quality.calibration.calibration import Calibration

    inputs = RunInputs()
    photos = [pairs.source_photos(cfg, inputs), pairs.held_out_photos(cfg, inputs)]
    targets = inputs.images(cfg.target.path, cfg.target.limit) if cfg.target.path else []
    view = pairs.target_view(cfg, targets)
    scorer = load_scorer(cfg.scorer)
    known = [group for group in photos if group is not None]
    total = sum(min(args.limit, len(group.files)) for group in known)
    with Progress("calibrate", total, "pair", cfg.log_interval_s) as progress:
        scored = [pairs.score_pairs(scorer, group, view, args.limit, count=progress.update) for group in known]
    made, missing = None, "no run directory is given"
    if found is not None:
        try:
            made = _store_scores(found, scorer, cfg, args.limit)
        except DataError as error:
            missing = str(error)
    name = cfg.scorer.path or cfg.scorer.metric
    result = Calibration(name, scorer.higher_is_better, tuple(scored), made, missing, cfg.scorer.threshold)
    if args.json:
        show_json(result.as_json())
        return ExitCode.REFUSED if result.proposal is None else ExitCode.DONE
    show(result.text())
    if result.proposal is None:
        say("apply     nothing: choose another scorer (`gmd-ray ls metrics` lists them), and calibrate it in this way")
        return ExitCode.REFUSED
    kept = [word for word in settings if not word.startswith("scorer.threshold=")]
    words = [*kept, f"scorer.threshold={result.proposal:g}"]
    say(f"apply     gmd-ray adapt {' '.join(map(shlex.quote, words))}")
    return 0


def _words(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Tell the run directory from the settings, and take the settings from the directory where none are named."""
    from gmd_ray.config.keys import SETTINGS

    store, settings = args.store, list(args.settings)
    key, sign, _ = (store or "").partition("=")
    if sign and (key in ("preset", "config") or key in SETTINGS) and not os.path.exists(store):
        store, settings = None, [store, *settings]
    if args.html or args.threshold is not None or args.fidelity_bound is not None:
        raise ConfigError("gate --calibrate: --html, --threshold and --fidelity-bound do not go with it")
    if store is not None and not any(word.startswith(("preset=", "config=")) for word in settings):
        from gmd_ray.storage import is_file

        folder = store if "://" in store else os.path.normpath(store)
        for file in (below(folder, "config.yaml"), below(above(folder), "config.yaml")):
            if is_file(file):
                settings = [f"config={file}", *settings]
                break
    if not settings:
        raise ConfigError("gate --calibrate: give a run directory that holds config.yaml, or the settings of the run")
    return store, settings


def _store_scores(store: PairStore, scorer: Scorer, cfg: Config, limit: int) -> StoreScores:
    """Take the scores of a store, or score some of its pseudo-targets where another scorer made them.

    Raises:
        DataError: nothing in the store is scored, or a part file cannot be read.
    """
    import numpy as np

    from gmd_ray.pairstore.audit.rescore import read_images, scored_ids
    from gmd_ray.pairstore.view import StoreView
    from gmd_ray.quality.calibration.calibration import StoreScores
    from gmd_ray.quality.calibration.pairs import enlarged, score_image, spread

    view = StoreView.open(store, cfg.scorer.threshold)
    ids = scored_ids(view)
    if not ids:
        raise DataError(f"{store.url}: no row has a score yet")
    same = view.settings.models.get("scorer", {}).get("fingerprint") == scorer.fingerprint
    made, photos = [], []
    for photo, pseudo_target, score in read_images(view, spread(ids, limit)):
        try:
            score = score if same else score_image(scorer, pseudo_target)
            pair = score, score_image(scorer, enlarged(photo, pseudo_target.shape[:2]))
        except DataError:
            continue
        made.append(pair[0])
        photos.append(pair[1])
    everything = [score for _, score in view.scores()] if same else made
    if not everything:
        raise DataError(f"{store.url}: none of its images can be scored by this scorer")
    return StoreScores(*(np.array(scores, np.float32) for scores in (everything, made, photos)))

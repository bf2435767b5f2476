"""Errors of the two calibration rules where they are known: in a run of the demo, whose last photos are beyond repair.

`python -m tests.quality.calibration.labelled_runs DIR [key=value ...]`, DIR being a run of `preset=demo` or of
`preset=toy`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from gmd_ray.config.load import load_config
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.pairstore.audit.rescore import read_images, scored_ids
from gmd_ray.pairstore.store import find_store
from gmd_ray.pairstore.view import StoreView
from gmd_ray.quality import load_scorer
from gmd_ray.quality.calibration.pairs import enlarged, score_image, score_pairs, source_photos, target_view
from gmd_ray.quality.calibration.ranking import admitted, best_threshold

SEVERE = 180
"""Number of the first photo of the toy world that is beyond repair; the photographs have `severe` in their names."""


def is_severe(image: str) -> bool:
    stem = Path(image).stem
    return "severe" in stem or (stem.isdigit() and int(stem) >= SEVERE)


def main(directory: str, *settings: str) -> None:
    cfg = load_config(settings or [f"config={directory}/config.yaml"])
    scorer, inputs = load_scorer(cfg.scorer), RunInputs()
    up = scorer.higher_is_better
    view = target_view(cfg, inputs.images(str(cfg.target.path)))
    source = score_pairs(scorer, source_photos(cfg, inputs), view, 200)
    rows = StoreView.open(find_store(directory), cfg.scorer.threshold)
    ids = scored_ids(rows)
    bad = np.array([is_severe(image) for image in ids])
    scores = [(s, score_image(scorer, enlarged(lq, made.shape[:2]))) for lq, made, s in read_images(rows, ids)]
    made, photos = np.array(scores, np.float32).T
    rules = {
        "source photos": best_threshold(source.better, source.worse, up),
        "pseudo-targets and photos": best_threshold(made, photos, up),
        "5th percentile of clean": float(np.percentile(source.better, 5 if up else 95)),
    }
    print(f"{directory}: {(~bad).sum()} good pairs, {bad.sum()} beyond repair")
    for name, threshold in rules.items():
        good, severe = (100 * admitted(made[part], threshold, up) for part in (~bad, bad))
        print(f"{name:<28}{threshold:>8.3g}  good rejected {100 - good:.1f} %, bad accepted {severe:.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])

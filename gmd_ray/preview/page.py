"""The page of a preview: pictures, yield, time and price, and the grid of settings."""

from __future__ import annotations

from typing import Any

from gmd_ray.evaluation.differences import BETTER, WORSE
from gmd_ray.evaluation.statistics import wilson
from gmd_ray.images.files.encode import decode_png
from gmd_ray.pairstore.thresholds import GateView
from gmd_ray.planning.plan import later_stages
from gmd_ray.preview.run import Preview
from gmd_ray.preview.sweep import Outcome, Sweep
from gmd_ray.quality import metric_variant
from gmd_ray.report.charts import score_charts
from gmd_ray.report.gallery import Gallery, ShownPhoto, fit, label, pair_photo
from gmd_ray.report.pages import render
from gmd_ray.report.placeless import hide_places, last_name

GB = 1e9
STAGES = {"restore": "student", "project": "teacher", "score": "scorer"}
"""Stage -> the model that works in it."""


def make_page(found: Preview) -> str:
    """Make the page; it refers to no other file, and names no folder of this machine."""
    cfg, gate, plan = found.cfg, found.gate, found.plan
    galleries, uris = fit([*_pair_galleries(found), *(_grid_galleries(found.sweep) if found.sweep else [])])
    taken = gate.passes(gate.threshold)
    rejected = [*gate.close[~taken].tolist(), *gate.strayed.tolist()]
    tried = len(found.rows)  # failed photos too: they give no pair, here or among all photos
    page = render(
        "preview.html.j2",
        name=last_name(cfg.out),
        first=_first(gate, tried),
        second=_second(found),
        galleries=galleries,
        uris=uris,
        label=label,
        charts=score_charts(
            gate.close[taken].tolist(), rejected, gate.threshold, lambda t: gate.admitted(t) / tried, of="photos tried"
        ),
        yields=[
            (f"{value:g}", n, f"{100 * n / tried:.0f} %", f"{round(plan.images * n / tried):,}",
             value == gate.threshold)
            for value, n in gate.curve()
        ],
        images=plan.images,
        costs=_costs(found),
        stages=_stages(found),
        gpu=_gpu(found),
        later=later_stages(cfg, [])[:-1],
        sweep=_grid_rows(found.sweep) if found.sweep else [],
        score=_score(found),
        restored=_db(found.sweep.restored_psnr) if found.sweep else "",
        best=found.sweep.best if found.sweep else None,
        failed=[row for row in found.rows if row["status"] != "ok"],
    )  # fmt: skip
    return hide_places(page, [text for text in (cfg.out, cfg.target.path, cfg.source.hq, cfg.teacher.path) if text])


def _first(gate: GateView, tried: int) -> str:
    admitted = gate.admitted(gate.threshold)
    sign = "≥" if gate.higher_is_better else "≤"
    make = "makes" if admitted == 1 else "make"
    return f"{admitted} of {tried} photos {make} a pair to train on, at a score {sign} {gate.threshold:g}."


def _second(found: Preview) -> str:
    plan = found.plan
    low, high = (round(plan.images * share) for share in wilson(len(found.accepted), len(found.rows)))
    hours = plan.accelerator_hours
    assert hours is not None, "a probe measured it"
    price = f", and cost {plan.price:,.2f} {plan.currency}" if plan.price is not None else ""
    where = "hours of an accelerator like this machine's" if _on_gpu(found) else "hours on this machine's CPUs"
    return (
        f"All {plan.images:,} photos would give {low:,} to {high:,} pairs (95 % interval, if these few were drawn "
        "at random; they are spread over small and large photos), take the teacher about "
        f"{_figure(hours)} {where}{price}."
    )


def _pair_galleries(found: Preview) -> list[Gallery]:
    sign = 1 if found.gate.higher_is_better else -1
    groups: dict[bool, list[ShownPhoto]] = {True: [], False: []}
    for row in sorted(found.rows, key=lambda row: -sign * (row["score"] or 0)):
        if row["status"] == "ok":
            pngs = {name: row[name] for name in ("lq", "restored", "pseudo_target")}
            groups[row["id"] in found.accepted].append(pair_photo(row["id"], pngs, f"score {row['score']:.3g}"))
    return [
        Gallery("Accepted", "best first; left of the line the restored photo, right the pseudo-target", groups[True],
                "None of these photos."),
        Gallery("Rejected", "best first; these would not be trained on", groups[False]),
    ]  # fmt: skip


def _grid_galleries(sweep: Sweep) -> list[Gallery]:
    best = sweep.best or sweep.outcomes[0]
    groups = []
    for title, inputs, made in (
        ("Source photos at every setting", sweep.source_inputs, [(o, o.sources) for o in sweep.outcomes]),
        ("Target photos at every setting", sweep.inputs, [(o, o.photos) for o in sweep.outcomes]),
    ):
        photos = []
        for image, start in inputs.items():
            projections = {outcome.point.name: pngs[image] for outcome, pngs in made if image in pngs}
            if not projections:
                continue
            after = best.point.name if best.point.name in projections else next(iter(projections))
            pngs = {"lq": start["lq"], "restored": start["restored"], **projections}
            truth = decode_png(start["hq"]) if "hq" in start else None
            photos.append(pair_photo(image, pngs, "", truth=truth, after=after))
        note = "the truth is known here" if inputs is sweep.source_inputs else "the photos that the run is for"
        groups.append(Gallery(title, note, photos))
    return groups


def _grid_rows(sweep: Sweep) -> list[dict[str, Any]]:
    best = sweep.best
    return [
        {
            "name": outcome.point.name,
            "words": outcome.point.words,
            "best": outcome is best,
            "style": _style(outcome),
            "cells": [
                ("PSNR to the truth", _db(outcome.psnr), _against(outcome)),
                ("PSNR to the restored photo", _db(outcome.fidelity), ""),
                ("score", "" if outcome.score is None else f"{outcome.score:.3g}", ""),
                ("seconds a photo", "" if outcome.seconds is None else f"{outcome.seconds:.2g}", ""),
                *([("failed", str(outcome.failed), "")] if any(o.failed for o in sweep.outcomes) else []),
            ],
        }
        for outcome in sweep.outcomes
    ]


def _against(outcome: Outcome) -> str:
    """The difference to the restored image, with its interval and a word."""
    difference = outcome.against_restored
    if difference is None:
        return ""
    text = f"{difference.mean:+.2f}"
    if difference.low is not None and difference.high is not None:
        text += f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    return f"{text} {difference.word}".replace("-", "−")


def _style(outcome: Outcome) -> str:
    word = "" if outcome.against_restored is None else outcome.against_restored.word
    return word if word in (BETTER, WORSE) else ""


def _costs(found: Preview) -> list[tuple[str, str]]:
    """Predicted cost of all photos; figures that are not known are left out."""
    plan = found.plan
    busy = "accelerator-hours" if _on_gpu(found) else "hours of the teacher, on CPUs"
    wall = f"wall time, hours, with {plan.accelerators} working at once"
    rows = [
        (f"price, {plan.currency}", None if plan.price is None else f"{plan.price:,.2f}"),
        (busy, _figure(plan.accelerator_hours)),
        (wall, _figure(plan.wall_hours)),
        ("photos", f"{plan.images:,}"),
        ("unreadable photos", f"{plan.unreadable:,}" if plan.unreadable else None),
        ("disk, GB", _figure(plan.disk_bytes / GB)),
    ]
    return [(name, value) for name, value in rows if value]


def _stages(found: Preview) -> list[tuple[str, str, str]]:
    """(model, seconds for a photo, share of the time) of each stage, as measured here."""
    whole = sum(found.probe.stages.values()) or 1.0
    return [
        (STAGES[stage], f"{seconds:.2g} s", _share(seconds / whole)) for stage, seconds in found.probe.stages.items()
    ]


def _share(share: float) -> str:
    return "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def _gpu(found: Preview) -> str:
    """A sentence that says what a GPU is needed for."""
    plan, stages = found.plan, found.probe.stages
    fastest, least = plan.replica_bytes
    share = 100 * stages["project"] / (sum(stages.values()) or 1.0)
    return (
        f"A GPU is needed for the teacher, which takes {share:.0f} % of the time: {plan.flops / 1e15:,.3g} PFLOP for "
        f"all photos, and {fastest / GB:.2g} GB of memory for each replica ({least / GB:.2g} GB at least). The student "
        f"takes {stages['restore']:.2g} s a photo and the scorer {stages['score']:.2g} s, which CPUs can do; the "
        "fine-tune trains the student alone."
    )


def _on_gpu(found: Preview) -> bool:
    return bool(found.cfg.teacher.pool.num_gpus)


def _score(found: Preview) -> str:
    """The scorer's name, variant and direction."""
    scorer = found.cfg.scorer
    name = last_name(scorer.path) if scorer.path else f"{scorer.metric}, {metric_variant(scorer.metric)}"
    return f"{name}, {'higher' if found.gate.higher_is_better else 'lower'} is better"


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} dB"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.2g}" if value < 100 else f"{value:,.0f}"

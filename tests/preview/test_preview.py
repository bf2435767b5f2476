"""A preview with the toy world's real models, without Ray: pictures, yield, time, price and the grid."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.evaluation import Difference
from gmd_ray.evaluation.statistics import wilson
from gmd_ray.images.degradation.degradations import make_degradation, sample_rng
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import decode_png, to_images, to_tensor
from gmd_ray.preview import Preview, make_page, preview
from gmd_ray.preview.grid import parse_grid
from gmd_ray.students import load_student
from gmd_ray.teachers import load_teacher
from tests.browser import BROKEN, PHONE, WIDER, audit, chromium, opened
from tests.planning.conftest import config
from tests.report.page import Page

CHECKED = 3


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    made = config(
        tmp_path_factory.mktemp("preview"),
        "teacher.steps=2",
        "teacher.injection.blocks=all",
        "teacher.injection.steps=1",
        "plan.price_per_hour=3600",
        "scorer.threshold=5",
    )
    made.source.lq, made.source.degradation = None, "noise"
    return made


@pytest.fixture(scope="module")
def found(cfg: Config) -> Preview:
    return preview(cfg, CHECKED, parse_grid("strength=0.3/1,injection=none/all-always", cfg.teacher))


def decibels(image: np.ndarray, reference: np.ndarray) -> float:
    return 10 * math.log10(1 / np.mean((image.astype(float) - reference.astype(float)) ** 2))


def test_photos_go_through_the_real_stages(cfg: Config, found: Preview) -> None:
    assert len(found.rows) == CHECKED
    assert all(row["status"] == "ok" for row in found.rows)
    student = load_student(cfg.student)
    teacher = load_teacher(cfg.teacher)
    for row in found.rows:
        photo = decode_image(Path(str(cfg.target.path), row["id"]).read_bytes())
        assert np.array_equal(np.rint(decode_png(row["lq"]) * 255), np.rint(photo * 255))
        lq = to_tensor([photo])
        restored = student.restore(lq, [row["id"]]).clamp(0, 1)
        assert np.abs(to_images(restored)[0] - decode_png(row["restored"])).max() < 1.01 / 255
        stored = to_tensor([decode_png(row["restored"])])
        projected = teacher.project(stored, [row["id"]]).clamp(0, 1)
        assert np.abs(to_images(projected)[0] - decode_png(row["pseudo_target"])).max() < 3 / 255
    assert not list(Path(cfg.out).parent.glob("run")), "the run directory is not touched"


def test_the_plan_is_for_all_photos_at_the_measured_speed(found: Preview) -> None:
    plan, probe = found.plan, found.probe
    assert (plan.images, probe.images) == (4, CHECKED)
    [seconds] = set(probe.seconds.values())
    assert plan.accelerator_hours == pytest.approx(4 * seconds / 3600)
    assert plan.price == pytest.approx(4 * seconds), "3600 an hour"


def test_the_grid_measures_against_restored_photo_and_truth(cfg: Config, found: Preview) -> None:
    sweep = found.sweep
    assert sweep is not None
    assert [outcome.point.name for outcome in sweep.outcomes] == [
        "strength 0.3, injection none", "strength 0.3, injection all-always",
        "strength 1, injection none", "strength 1, injection all-always",
    ]  # fmt: skip
    for outcome in sweep.outcomes:
        assert set(outcome.photos) == set(sweep.inputs)
        assert len(outcome.photos) == len(outcome.sources) == CHECKED
        restored = [decode_png(sweep.inputs[image]["restored"]) for image in outcome.photos]
        expected = [
            decibels(decode_png(png), image) for png, image in zip(outcome.photos.values(), restored, strict=True)
        ]
        assert outcome.fidelity == pytest.approx(np.mean(expected))
        truths = {image: decode_png(sweep.source_inputs[image]["hq"]) for image in outcome.sources}
        to_truth = [decibels(decode_png(png), truths[image]) for image, png in outcome.sources.items()]
        assert outcome.psnr == pytest.approx(np.mean(to_truth), abs=0.02), "truths are rounded to 8 bits in the page"
        before = [decibels(decode_png(sweep.source_inputs[image]["restored"]), truths[image]) for image in truths]
        assert outcome.against_restored is not None
        assert outcome.against_restored.mean == pytest.approx(np.mean(to_truth) - np.mean(before), abs=0.02)
        assert outcome.seconds is not None
        assert outcome.seconds > 0
    assert sweep.best is max(sweep.outcomes, key=lambda outcome: outcome.psnr or 0)
    fidelity = {outcome.point.name: outcome.fidelity or 0 for outcome in sweep.outcomes}
    assert fidelity["strength 1, injection all-always"] > fidelity["strength 1, injection none"], "it holds the photo"


def test_a_grid_is_corrected_for_the_number_of_its_points(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A p-value of 0.03 is clear alone, and of two it is 0.06 after Holm."""
    clear = Difference(1.0, 0.1, 1.9, 8, 0, p=0.03, adjusted_p=0.03)
    assert clear.word == "better"
    monkeypatch.setattr("gmd_ray.preview.sweep.paired", lambda after, before: clear)
    sweep = preview(cfg, 1, parse_grid("strength=0.3/1", cfg.teacher)).sweep
    assert sweep is not None
    found = [outcome.against_restored for outcome in sweep.outcomes]
    assert [difference.adjusted_p for difference in found if difference] == pytest.approx([0.06, 0.06])
    assert [difference.word for difference in found if difference] == ["no difference seen"] * 2


def test_source_inputs_are_made_by_the_degradation(cfg: Config, found: Preview) -> None:
    assert found.sweep is not None
    degradation = make_degradation("noise", cfg.source.degradation_args)
    for name, pngs in found.sweep.source_inputs.items():
        original = name.partition("-")[2]
        clean = decode_image(Path(str(cfg.source.hq), original).read_bytes())
        assert np.array_equal(np.rint(decode_png(pngs["hq"]) * 255), np.rint(clean * 255))
        noisy = degradation(clean, sample_rng("preview", cfg.seed, original))
        assert np.abs(decode_png(pngs["lq"]) - np.clip(noisy, 0, 1)).max() < 0.51 / 255


def test_the_page(cfg: Config, found: Preview) -> None:
    html = make_page(found)
    page = Page(html)
    taken = len(found.accepted)
    assert re.search(rf"{taken} of {CHECKED} photos makes? a pair to train on, at a score ≥ 5\.", page.text)
    low, high = wilson(taken, CHECKED)
    assert f"All 4 photos would give {round(4 * low)} to {round(4 * high)} pairs" in page.text
    assert "95 % interval, if these few were drawn at random; they are spread over small and large photos" in page.text
    assert "highest mean on these same source photos" in page.text
    assert f"and cost {found.plan.price:,.2f} USD" in page.text
    assert page.text.count("A GPU is needed for the teacher") == 1
    galleries = page.galleries
    assert sorted([*galleries["Accepted"], *galleries.get("Rejected", [])]) == sorted(row["id"] for row in found.rows)
    assert len(galleries["Source photos at every setting"]) == CHECKED
    for outcome in found.sweep.outcomes if found.sweep else []:
        assert outcome.point.name in page.text
    assert "teacher.strength=" in page.text
    assert "better or worse after Holm's correction for all settings" in page.text
    assert "PSNR: higher is better; RGB, no border cut off. Score: scorer, higher is better." in page.text
    assert str(Path(cfg.out).parent) not in html
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)


def test_a_failed_photo_counts_in_every_share(found: Preview) -> None:
    """The share, the number among all photos and the curve are of the photos tried."""
    lost = {**found.rows[0], "id": "lost.png", "status": "failed", "error": "no", "score": None}
    html = make_page(replace(found, rows=[*found.rows, lost]))
    rows = re.findall(r"<td>(\d+)</td><td>(\d+) %</td><td>(\d+)</td>", html)
    tried = CHECKED + 1
    assert (str(CHECKED), f"{100 * CHECKED / tried:.0f}", str(round(4 * CHECKED / tried))) in rows, "the laxest"
    for count, share, among_all in rows:
        assert (share, among_all) == (f"{100 * int(count) / tried:.0f}", str(round(4 * int(count) / tried)))
    accepted = found.gate.admitted(found.gate.threshold)
    assert f"The threshold accepts {100 * accepted / tried:.1f} % of the photos tried." in html


def test_the_page_in_a_browser(found: Preview, tmp_path: Path) -> None:
    path = tmp_path / "preview.html"
    path.write_text(make_page(found))
    with chromium() as browser, opened(browser, path, viewport=PHONE) as page:
        assert page.evaluate(BROKEN, "thead th") == []
        page.set_viewport_size({"width": 800, "height": 900})
        assert page.locator("thead th").count() > 8, "the table of the grid and that of the thresholds"
        assert page.evaluate(BROKEN, "thead th") == []
        page.set_viewport_size(PHONE)
        page.eval_on_selector_all("details", "all => all.forEach((e) => { e.open = true; })")
        assert page.evaluate(WIDER) == []
        assert audit(page) == []
        page.evaluate("[...document.querySelectorAll('.thumb')].at(-1).click()")
        labels = page.eval_on_selector_all("#closer .pick-right option", "all => all.map((e) => e.label)")
        assert "strength 1, injection all-always" in labels, "every setting can be compared"


def test_the_verb_without_source_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str], cfg: Config) -> None:
    to = tmp_path / "page.html"
    settings = [
        f"out={tmp_path / 'run'}", f"student.path={cfg.student.path}", f"teacher.path={cfg.teacher.path}",
        "teacher.prompt=hq", "teacher.steps=1", "teacher.injection.blocks=all", "teacher.injection.steps=1",
        f"scorer.path={cfg.scorer.path}", f"target.path={cfg.target.path}",
    ]  # fmt: skip
    status = main(["preview", *settings, "--photos", "2", "--sweep", "strength=0.3/0.5", "--to", str(to)])
    assert status == 0
    assert f"page     {to}" in capsys.readouterr().out
    text = Page(to.read_text()).text
    assert "No source pairs are set (source.hq)" in text
    assert "cost" not in text.partition("Later stages")[0].partition("Time and money")[0].partition("photos would")[2]
    assert not (tmp_path / "run" / "pairs").exists(), "a preview leaves no pairs behind"


def test_what_the_verb_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], cfg: Config) -> None:
    settings = [f"out={tmp_path / 'run'}", f"student.path={cfg.student.path}", f"teacher.path={cfg.teacher.path}",
                "teacher.prompt=hq", f"scorer.path={cfg.scorer.path}", f"target.path={cfg.target.path}"]  # fmt: skip
    assert main(["preview", *settings, "--sweep", "colour"]) == 2
    assert "no axis 'colour'" in capsys.readouterr().err
    assert (
        main(["preview", *settings, "teacher.injection.blocks=all", "teacher.injection.steps=4", "--sweep", "steps=2"])
        == 2
    )
    assert "--sweep, steps 2: teacher.injection.steps=4: at most teacher.steps=2" in capsys.readouterr().err
    assert main(["preview", *settings[1:], "out=s3://bucket/run", "tracking.enabled=false"]) == 2
    assert "give --to FILE" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["preview", *settings, "--photos", "0"])

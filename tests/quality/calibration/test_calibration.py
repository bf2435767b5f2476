"""The figures and words of a calibration, and the verb that prints it, with the demo's scorer, NIQE and BRISQUE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gmd_ray
from gmd_ray.cli import main
from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.errors import ExitCode
from gmd_ray.images.files.decode import decode_image
from gmd_ray.images.files.encode import encode_png, to_tensor
from gmd_ray.pairstore.store import PairStore
from gmd_ray.quality.calibration.calibration import Calibration, StoreScores
from gmd_ray.quality.calibration.pairs import PairedPhotos, ScoredPairs
from gmd_ray.quality.nima import NimaScorer
from tests.generation.shelf import fill, finish, ok_row

SCORER = Path(gmd_ray.__file__).parent / "demo" / "toy" / "weights" / "scorer"
SOURCE = PairedPhotos("source", "clean photo", "degraded photo", (), False)


def scored(better: np.ndarray, worse: np.ndarray, name: str = "source") -> ScoredPairs:
    return ScoredPairs(PairedPhotos(name, "clean photo", "degraded photo", (), False), better, worse, 0, "")


def spreads(*means: float, n: int = 40) -> list[np.ndarray]:
    return [np.linspace(mean - 0.4, mean + 0.4, n).astype(np.float32) for mean in means]


def test_the_target_s_own_groups_decide_where_there_is_a_store() -> None:
    clean, degraded, made, photos = spreads(9, 7, 6, 3)
    source = scored(clean, degraded)
    alone = Calibration("s", True, (source,), None, "no store", 4.2)
    assert alone.proposal == alone.by_source == 8.0
    both = Calibration("s", True, (source,), StoreScores(made, made, photos), "", 4.2)
    assert (both.by_source, both.proposal) == (8.0, 4.5)
    [line] = [line for line in both.text().splitlines() if "proposed" in line]
    assert line.split()[:10] == [">=", "4.5", "0.0", "%", "100.0", "%", "0.0", "%", "100.0", "%"]
    [other] = [line for line in both.text().splitlines() if line.startswith(">= 8 ")]
    assert other.split()[8:10] == ["0.0", "%"], "the source's threshold would reject every pseudo-target"


def test_the_source_decides_where_content_hides_what_the_teacher_did() -> None:
    clean, degraded = spreads(9, 7)
    photos = np.linspace(4, 8, 60).astype(np.float32)
    found = Calibration("s", True, (scored(clean, degraded),), StoreScores(photos + 1, photos + 1, photos), "", 4.2)
    assert found.teaching is not None
    assert (found.teaching.verdict, found.teaching.matched) == ("right", 1.0)
    assert found.teaching.share < 0.9
    assert (found.by_source, found.proposal) == (8.0, 8.0)
    lines = found.text().splitlines()
    assert [line.split()[1] for line in lines if "proposed" in line] == ["8"]
    assert any("parts pseudo-targets from their photos best" in line for line in lines), "shown, not proposed"


def test_lower_may_be_better() -> None:
    clean, degraded, made, photos = spreads(9, 7, 6, 3)
    mirrored = Calibration("s", False, (scored(-clean, -degraded),), StoreScores(-made, -made, -photos), "", -4.2)
    assert (mirrored.by_source, mirrored.proposal) == (-8.0, -4.5)
    assert "<= -4.5" in mirrored.text()


def test_no_threshold_for_a_score_that_prefers_the_worse_images() -> None:
    clean, degraded, made, photos = spreads(9, 7, 6, 3)
    store = StoreScores(made, made, photos)
    backwards = Calibration("s", True, (scored(degraded, clean),), store, "", 4.2)
    truths = Calibration("s", True, (scored(clean, degraded), scored(photos, made, "target test")), store, "", 4.2)
    worsened = Calibration("s", True, (scored(clean, degraded),), StoreScores(photos, photos, made), "", 4.2)
    for found in (backwards, truths, worsened):
        assert found.proposal is None
        assert "BACKWARDS" in found.text()
        assert "threshold none" in found.text()
    assert "either the teacher makes the photos worse" in worsened.text()
    equal = Calibration("s", True, (scored(clean, degraded), scored(made, made, "target test")), None, "no store", 4.2)
    assert equal.proposal == 8.0, "held-out photos with next to no degradation are no reason to refuse"
    same = Calibration("s", True, (scored(clean, degraded),), StoreScores(made, made, made), "", 4.2)
    assert (same.by_target, same.proposal) == (None, 8.0)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small toy world, and a store whose pseudo-targets are the truth, but for the photos beyond repair."""
    root = tmp_path_factory.mktemp("calibrated")
    prepare(root / "world", WorldSize(target=40, severe=4, source=40, target_test=1, source_test=1))
    scorer, rows = NimaScorer.from_pretrained(SCORER), []
    for photo in sorted((root / "world" / "target_lq").iterdir()):
        bad = int(photo.stem) >= 36
        made = (photo if bad else root / "world" / "target_hq" / photo.name).read_bytes()
        image = decode_image(made)
        score = float(scorer.score(to_tensor([image]))[0])
        images = {"lq": encode_png(decode_image(photo.read_bytes())), "pseudo_target": encode_png(image)}
        rows.append(ok_row(photo.name, score, height=image.shape[0], width=image.shape[1], **images))
    store = PairStore(str(root / "pairs"))
    fill(store, [rows])
    finish(store, rows, threshold=8.2)
    saved = store.read("settings.json")
    store.write("settings.json", {**saved, "models": {"scorer": {"fingerprint": scorer.fingerprint}}})
    (root / "config.yaml").write_text(
        f"out: {root}\n"
        f"source: {{hq: {root}/world/source_hq, lq: {root}/world/source_lq}}\n"
        f"target: {{path: {root}/world/target_lq}}\n"
        f"scorer: {{path: {SCORER}, threshold: 8.2}}\n"
    )
    return root


def test_the_verb_takes_the_settings_of_the_run(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(drawn), "--calibrate"]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith(("source, ", "target, "))]
    table = {line.split("  ")[0]: line.split()[-6:] for line in lines}
    assert {name: row[0] for name, row in table.items()} == {
        "source, clean photo": "40",
        "source, degraded photo": "40",
        "target, photo": "40",
        "target, pseudo-target": "40",
    }
    assert float(table["source, clean photo"][3]) > float(table["source, degraded photo"][3])
    assert out.count("in the right order") == 2
    [proposed] = [line for line in out.splitlines() if "proposed" in line]
    threshold = proposed.split()[1]
    assert f"gmd-ray adapt config={drawn}/config.yaml scorer.threshold={threshold}\n" in out
    view = PairStore(str(drawn / "pairs"))
    assert view.read("manifest.json")["threshold"] == 8.2, "nothing is changed"
    assert main(["gate", str(drawn / "pairs"), "--threshold", threshold]) == 0
    [asked] = [line for line in capsys.readouterr().out.splitlines() if "<- asked" in line]
    assert asked.split()[3] == f"{proposed.split()[8]}%", "the yield curve counts the same pairs"
    assert 32 <= int(asked.split()[2]) <= 36, "nearly all good ones, and none beyond repair"


def test_without_a_store(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"source.hq={drawn}/world/source_hq", f"source.lq={drawn}/world/source_lq", f"scorer.path={SCORER}"]
    assert main(["gate", "--calibrate", *settings, "--limit", "10"]) == 0
    out = capsys.readouterr().out
    assert "no pseudo-targets: no run directory is given" in out
    assert "gmd-ray adapt source.hq=" in out
    assert main(["gate", settings[0], "--calibrate", *settings[1:], "--limit", "10"]) == 0, "settings go anywhere"
    assert capsys.readouterr().out == out
    assert main(["gate", "--calibrate", *settings, "scorer.threshold=5", "--limit", "10"]) == 0
    [apply] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("apply")]
    assert apply.count("scorer.threshold=") == 1, "the proposal takes the place of the one that was given"


def test_another_scorer_than_the_store_s(drawn: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch

    torch.manual_seed(0)
    other = NimaScorer((4, 4, 4))
    other.save_pretrained(tmp_path / "other")
    status = main(["gate", str(drawn), "--calibrate", f"scorer.path={tmp_path / 'other'}", "--limit", "8"])
    out = capsys.readouterr().out
    [row] = [line for line in out.splitlines() if line.startswith("target, pseudo-target")]
    assert row.split()[2] == "8", "its own scores, of some of the stored images"
    assert (status == 0) == ("apply     gmd-ray adapt" in out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibrate"], "give a run directory that holds config.yaml, or the settings of the run"),
        (["DIR", "--calibrate", "--html", "x.html"], "do not go with it"),
        (["DIR", "scorer.threshold=3"], "settings are for --calibrate alone"),
        ([], "give the directory of one run"),
        (["--calibrate", "scorer.path=SCORER"], "source.hq is not set: there are no clean photos to score"),
        (["--calibrate", "preset=demo", "out=NEW"], "is drawn when a run starts"),
    ],
)
def test_what_cannot_be_calibrated(
    words: list[str], message: str, drawn: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    places = {"DIR": str(drawn), "scorer.path=SCORER": f"scorer.path={SCORER}", "out=NEW": f"out={tmp_path / 'new'}"}
    assert main(["gate", *(places.get(word, word) for word in words)]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("metric", ["niqe", "brisque"])
def test_niqe_and_brisque_take_camera_noise_for_quality(
    metric: str, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared_data / "photo_world"
    file = {"niqe": "niqe_from_basicsr.mat", "brisque": "brisque_from_allmodel.pth"}[metric]
    settings = [f"scorer.metric={metric}", f"scorer.weights={shared_data / 'weights' / file}"]
    settings += ["source.degradation=noise", f"source.hq={data}/source_test_hq", f"target.path={data}/target_test_lq"]
    truths = [f"evaluation.target_lq={data}/target_test_lq", f"evaluation.target_hq={data}/target_test_hq"]
    assert main(["gate", "--calibrate", *settings, *truths, "--limit", "12"]) == ExitCode.REFUSED
    out = capsys.readouterr().out
    assert "source: in the right order" in out, "white noise on other photos they can tell"
    assert "target test: BACKWARDS" in out
    assert "apply     nothing" in out

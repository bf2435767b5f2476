"""The verbs of the model registry, as a user types them, on a database that runs have left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gmd_ray.cli import main
from gmd_ray.config import Config, PromotionGate
from gmd_ray.hashing import content_digest
from gmd_ray.tracking import TrackingError, promote_version
from tests.evaluation.conftest import write_store
from tests.tracking.measures import figures, measured, student_file, version_of


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Where the registry is: version 1 is champion with +0.5 dB, version 2 was refused with +0.3 dB."""
    folder = tmp_path_factory.mktemp("registry")
    cfg = Config(out=str(folder / "run"))
    cfg.tracking.uri, cfg.tracking.model = f"sqlite:///{folder}/mlflow.db", "shared"
    cfg.tracking.gates = [PromotionGate()]
    assert version_of(cfg, student_file(folder, b"one"), figures(0.5))[1].promoted
    assert not version_of(cfg, student_file(folder, b"two"), figures(0.3))[1].promoted
    return [f"tracking.uri={cfg.tracking.uri}", "tracking.model=shared"]


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_refusal_names_each_gate_and_has_a_status_of_its_own(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["promote", "2", "--reason", "why not", *settings]) == 4
    first, second, last = said(capsys)
    assert first.startswith("holds: target psnr 22.3: gain +0.3 over baseline (n=3)")
    assert second.startswith("refused: target psnr 22.3: gain -0.2 over champion (version 1) 22.5 (n=3)")
    assert last == "version 2 is not promoted"


def test_compare(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "models:/shared@champion", "2", *settings]) == 0
    assert said(capsys) == [
        "models:/shared/2 over models:/shared/1",
        "target psnr: 22.5 -> 22.3: gain -0.2 (n=3), too few images",
    ]
    assert main(["compare", "2", "1", "--json", *settings]) == 0
    [figure] = json.loads(capsys.readouterr().out)["figures"]
    assert figure["gain"] == pytest.approx(0.2)
    assert figure["means"] == pytest.approx([22.3, 22.5])


def test_figures_are_corrected_for_their_number_and_a_low_one_may_be_good(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Three figures, one of them clear: its p-value times three after Holm."""
    cfg = Config(out=str(tmp_path / "run"))
    rng = np.random.default_rng(4)
    base = rng.normal(20, 1, 12)
    for name, fall in ((b"one", 0.0), (b"two", 0.5)):
        values = {
            ("baseline", "target", "psnr"): list(base),
            ("adapted", "target", "psnr"): list(base + rng.normal(0, 1, 12)),
            ("adapted", "target", "lpips"): list(base + rng.normal(0, 1, 12)),
            ("adapted", "target", "niqe"): list(base - fall + rng.normal(0, 0.1, 12)),
        }
        version_of(cfg, student_file(tmp_path, name), measured(values))
    assert main(["compare", "1", "2", "--json", f"out={cfg.out}"]) == 0
    figures = {each["metric"]: each for each in json.loads(capsys.readouterr().out)["figures"]}
    least = min(figures.values(), key=lambda each: each["p"])
    assert least is figures["niqe"]
    assert least["adjusted_p"] == pytest.approx(3 * least["p"])
    assert figures["niqe"]["lower_is_better"] is True
    assert figures["niqe"]["verdict"] == "better"
    assert figures["niqe"]["gain"] == pytest.approx(0.5, abs=0.15)
    assert figures["psnr"]["lower_is_better"] is False
    assert main(["compare", "1", "2", f"out={cfg.out}"]) == 0
    assert any(line.startswith("target niqe (lower is better): ") for line in said(capsys))


def test_another_test_set_is_not_compared(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cfg = Config(out=str(tmp_path / "run"))
    version_of(cfg, student_file(tmp_path, b"one"), figures(0.5))
    longer = measured({("baseline", "target", "psnr"): [20] * 4, ("adapted", "target", "psnr"): [21] * 4})
    version_of(cfg, student_file(tmp_path, b"two"), longer)
    assert main(["compare", "1", "2", f"out={cfg.out}"]) == 0
    assert said(capsys)[1].endswith("not compared, they were measured on different test sets")


def test_promote_anyway_history_and_rollback(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "2", "--anyway", "--reason", "the eyes are better", *settings]) == 0
    assert said(capsys)[-1] == "version 2 is champion"
    assert main(["rollback", "--reason", "they are not", *settings]) == 0
    assert said(capsys) == ["shared: version 1 is champion again, in place of 2"]
    assert main(["history", *settings]) == 0
    lines = said(capsys)
    assert "version 2 over 1: promoted, by " in "\n".join(lines)
    assert any(line.endswith(": against the gates: the eyes are better") for line in lines)
    assert main(["history", "--json", *settings]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["action"] for entry in entries][-2:] == ["promoted", "rolled back"]
    assert entries[-1]["reason"] == "they are not"
    assert any(gate.startswith("refused") for gate in entries[-2]["gates"])


def test_trace_prints_lines(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "1", *settings]) == 0
    parts = [line.split()[0] for line in said(capsys)]
    assert parts[:9] == ["version", "run", "code", "store", "teacher", "student", "scorer", "test_sets", "settings"]


def test_trace_goes_down_to_the_digest_of_each_pairs_photo(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cfg = Config(out=str(tmp_path / "run"))
    digests = [content_digest(f"photo {i}".encode()) for i in range(3)]
    write_store(tmp_path / "run", [5.0, 4.0, None], digests=digests)
    version_of(cfg, student_file(tmp_path), figures(0.5))
    shutil.rmtree(tmp_path / "run" / "pairs")  # what is traced travels with the version
    assert main(["trace", "1", "--json", f"out={cfg.out}"]) == 0
    pairs = json.loads(capsys.readouterr().out)["pairs"]
    assert [row["digest"] for row in pairs] == digests
    assert [row["accepted"] for row in pairs] == [True, False, False]
    assert main(["trace", "1", f"out={cfg.out}"]) == 0
    lines = said(capsys)
    assert "pairs      3 rows, 1 accepted" in lines
    assert lines[-1] == f"  00.png: score 5, photo /photos/0, sha256 {digests[0]}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["promote", "9", "--reason", "x"], "shared has no version 9"),
        (["promote", "models:/nobody@champion", "--reason", "x"], "no registered model 'nobody'"),
        (["promote", "models:/shared@staging", "--reason", "x"], "no version of shared has the alias 'staging'"),
        (["compare", "models:/a/b/c", "1"], "give models:/NAME@ALIAS"),
    ],
)
def test_what_does_not_exist_is_named(
    words: list[str], message: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *settings]) == 2
    assert message in capsys.readouterr().err


def test_the_registry_of_a_run_is_found_by_its_directory(
    settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uri, model = (word.partition("=")[2] for word in settings)
    (tmp_path / "config.yaml").write_text(f"tracking: {{uri: '{uri}', model: {model}}}\nout: /elsewhere\n")
    assert main(["history", f"out={tmp_path}"]) == 0
    assert any("version 1: promoted, by " in line for line in said(capsys))
    assert main(["history", f"out={tmp_path}", "tracking.model=another"]) == 2
    for damaged in ("tracking: {", "tracking: 3", "- 1"):
        (tmp_path / "config.yaml").write_text(damaged)
        assert main(["history", f"out={tmp_path}"]) == 2
        assert "its config.yaml cannot be read" in capsys.readouterr().err


def test_a_mistyped_directory_has_missed_something(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["sync", f"{tmp_path}/typo"]) == 2
    assert f"{tmp_path}/typo: no config.yaml there" in capsys.readouterr().err
    assert main(["config", "preset=toy", "out="]) == 2
    assert "out=: give a run directory" in capsys.readouterr().err


def test_a_file_that_is_gone_is_told_with_its_place(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cfg = Config(out=str(tmp_path / "run"))
    cfg.tracking.uri, cfg.tracking.gates = f"sqlite:///{tmp_path}/mlflow.db", [PromotionGate()]
    version_of(cfg, student_file(tmp_path, b"one"), figures(0.5))
    shutil.rmtree(tmp_path / "mlartifacts")
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(TrackingError, match=r"its files at .* are gone: mount what is missing"):
        promote_version(cfg, "1", "again")  # no word of missing values, and no refusal in the history
    words = ["-m", f"models:/{cfg.tracking.model}/1", "-i", str(photos), "-o", str(tmp_path / "restored")]
    assert main(["restore", *words, f"tracking.uri={cfg.tracking.uri}"]) == 1
    assert "are gone: mount what is missing" in capsys.readouterr().err


def test_a_question_makes_no_database(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["history", f"out={tmp_path}/gone"]) == 2
    assert "no such database" in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()

"""The journal of promotions: who, when, why; back again; and two that come at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from gmd_ray.config import Config, PromotionGate
from gmd_ray.errors import ConfigError
from gmd_ray.tracking import (
    champions,
    history,
    journal,
    promote,
    promote_version,
    promotion,
    register,
    rollback,
    start_run,
)
from gmd_ray.tracking.client import TrackingError
from gmd_ray.tracking.journal import Journal
from gmd_ray.tracking.versions import find_version
from tests.tracking.measures import figures, student_file, version_of


@pytest.fixture
def three(run: Config, tmp_path: Path) -> Config:
    """Three versions: 1 is champion with +0.1, 2 and 3 are registered only, with +0.5 and +0.3."""
    run.tracking.gates = [PromotionGate()]
    version_of(run, student_file(tmp_path, b"first"), figures(0.1))
    for gain in (0.5, 0.3):
        with start_run(run, {}) as recorder:
            register(run, recorder, student_file(tmp_path, str(gain).encode()), figures(gain))
    return run


def aliases(client: MlflowClient, cfg: Config) -> dict[str, str]:
    found = client.get_registered_model(cfg.tracking.model).aliases
    return {name: str(number) for name, number in found.items() if name != "challenger"}


def test_a_version_is_judged_again_by_what_travels_with_it(three: Config, client: MlflowClient) -> None:
    """The run directory is not read: nothing is there."""
    before = int(time.time() * 1000) - 1000
    elsewhere = Config(out="/nonexistent", tracking=three.tracking)
    decision = promote_version(elsewhere, f"models:/{three.tracking.model}/2", "better on the new photos")
    assert decision.promoted
    assert decision.reasons[1].startswith("holds: target psnr 22.5: gain +0.4 over champion (version 1) 22.1 (n=3)")
    decision = promote_version(elsewhere, "3", "try the other one")
    assert not decision.promoted
    assert decision.reasons[1].startswith("refused: target psnr 22.3: gain -0.2 over champion (version 2)")
    assert aliases(client, three) == {"champion": "2", "previous": "1"}
    first, second, third = history(elsewhere, three.tracking.model)
    assert (first.action, first.version, first.before) == ("promoted", "1", None)
    assert (second.action, second.version, second.before) == ("promoted", "2", "1")
    assert (third.action, third.version, third.reason) == ("refused", "3", "try the other one")
    assert second.reason == "better on the new photos"
    assert "@" in second.who
    assert second.at_ms >= before
    assert second.run_id == client.get_model_version(three.tracking.model, "2").run_id
    assert second.gates[0].startswith("holds: target psnr 22.5: gain +0.5 over baseline")
    assert third.gates == tuple(decision.reasons)


def test_gates_that_are_given_replace_those_of_the_version(three: Config) -> None:
    three.tracking.gates = [PromotionGate(min_gain=9)]
    assert not promote_version(three, "2", "stricter", gates=True).promoted
    assert promote_version(three, "2", "as it was registered").promoted


def test_back_again(three: Config, client: MlflowClient) -> None:
    promote_version(three, "2", "better")
    assert rollback(three, three.tracking.model, "faces look wrong") == ("1", "2")
    assert aliases(client, three) == {"champion": "1", "previous": "2"}
    assert rollback(three, three.tracking.model, "they do not") == ("2", "1")
    assert rollback(three, three.tracking.model, "the third one", to="3") == ("3", "2")
    assert aliases(client, three) == {"champion": "3", "previous": "2"}
    assert [entry.action for entry in history(three, three.tracking.model)][-3:] == ["rolled back"] * 3
    with pytest.raises(ConfigError, match="is the champion already"):
        rollback(three, three.tracking.model, "again", to="3")
    with pytest.raises(ConfigError, match=r"has no version 9 at .*; it has 1, 2, 3"):
        rollback(three, three.tracking.model, "again", to="9")
    with pytest.raises(ConfigError, match="--reason is empty"):
        rollback(three, three.tracking.model, "  ")


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_run_that_is_repeated_does_not_overrule_who_took_its_version_back(
    by_hand: bool, run: Config, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.tracking.gates, model = [PromotionGate()], run.tracking.model
    version_of(run, student_file(tmp_path, b"first"), figures(0.1))
    with start_run(run, {}) as recorder:
        version = register(run, recorder, student_file(tmp_path, b"second"), figures(0.5))
        assert promote(run, recorder, version, figures(0.5)).promoted
        if by_hand:
            monkeypatch.setattr(journal, "_GRACE_MS", -1)
            client.set_registered_model_alias(model, "champion", "1")
        else:
            rollback(run, model, "faces look wrong")
        for _ in range(2):
            decision = promote(run, recorder, version, figures(0.5))
            assert not decision.promoted
    [reason] = decision.reasons
    assert reason.startswith(f"refused: version 2 was {'moved by hand (noticed by ' if by_hand else 'rolled back by '}")
    assert ("(faces look wrong)" in reason) == (not by_hand)
    assert aliases(client, run) == {"champion": "1", "previous": "2"}
    assert [entry.action for entry in history(run, model)].count("refused") == 1
    assert client.get_model_version(model, "2").tags["promotion"] == reason
    assert promote_version(run, "2", "they do not").promoted


def test_files_that_cannot_be_fetched_are_not_taken_for_missing(three: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: object) -> str:
        raise ConnectionError("503 from the artifact store")

    for name in ("download_artifacts", "list_artifacts"):  # the file is listed, then nothing answers
        monkeypatch.setattr(f"mlflow.artifacts.{name}", away)
        with pytest.raises(TrackingError, match=r"/2 at .*evaluation cannot be read \(503 from the artifact store\)"):
            promote_version(three, "2", "better")
        with pytest.raises(TrackingError, match="cannot be read"):
            find_version(three, "2").find("about/evaluation", three.out)
    monkeypatch.undo()
    assert [entry.action for entry in history(three, three.tracking.model)] == ["promoted"], "no refusal is written"
    assert find_version(three, "2").find("about/not_there", three.out) is None
    assert find_version(three, "2").find("not/there/either", three.out) is None


def test_a_promotion_that_comes_second_is_judged_against_the_first(
    three: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 3 is judged against 1, which it beats; before it is written, 2 becomes champion."""
    meanwhile = []

    def interrupted(*args: object) -> list[promotion.Verdict]:
        verdicts = promotion.judge_promotion(*args)  # type: ignore[arg-type]
        if not meanwhile:
            meanwhile.append(verdicts)
            assert promote_version(three, "2", "first").promoted
        return verdicts

    monkeypatch.setattr(champions, "judge_promotion", interrupted)
    decision = promote_version(three, "3", "second")
    assert all(holds for holds, _ in meanwhile[0])
    assert not decision.promoted
    assert "gain -0.2 over champion (version 2)" in decision.reasons[1]
    assert aliases(client, three) == {"champion": "2", "previous": "1"}
    actions = [(entry.version, entry.action) for entry in history(three, three.tracking.model)]
    assert actions == [("1", "promoted"), ("2", "promoted"), ("3", "overtaken"), ("3", "refused")]


def test_an_alias_moved_by_hand_becomes_an_entry(
    three: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = three.tracking.model
    client.set_registered_model_alias(model, "champion", "3")
    # Within a minute of the last entry it is taken for an alias that has not followed yet.
    assert Journal(client, model).champion() == "1"
    monkeypatch.setattr(journal, "_GRACE_MS", -1)
    client.set_registered_model_alias(model, "champion", "3")
    assert Journal(client, model).champion() == "3"
    assert [(e.action, e.version, e.before) for e in history(three, model)][-1] == ("moved by hand", "3", "1")
    assert aliases(client, three) == {"champion": "3", "previous": "1"}
    client.delete_registered_model_alias(model, "champion")
    assert Journal(client, model).champion() is None
    assert promote_version(three, "2", "there has to be one").promoted


def test_a_promotion_that_died_before_the_alias_moved_is_finished(three: Config, client: MlflowClient) -> None:
    book = Journal(client, three.tracking.model)
    book._append("promoted", "2", "1", "and then the machine died", (), None)
    assert aliases(client, three) == {"champion": "1"}
    assert book.champion() == "2"
    assert aliases(client, three) == {"champion": "2", "previous": "1"}


def test_a_repeated_request_counts_once(three: Config, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network lost the answer, and the client has sent the entry again."""
    create = client.create_model_version

    def twice(*args: object, **kwargs: object) -> object:
        create(*args, **kwargs)  # type: ignore[arg-type]
        return create(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(client, "create_model_version", twice)
    assert Journal(client, three.tracking.model).move("2", "1", "promoted", "once", (), None)
    assert [entry.version for entry in history(three, three.tracking.model)] == ["1", "2"]

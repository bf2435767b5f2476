"""Changing the champion of a model: by the gates at the end of a run, by hand, and back again."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gmd_ray.config import Config, PromotionGate
from gmd_ray.config.places import sqlite_path
from gmd_ray.errors import ConfigError
from gmd_ray.progress import NullRecorder
from gmd_ray.teachers import teacher_licence
from gmd_ray.tracking.client import TrackingError, connect, name_filter, tracking_errors, tracking_uri
from gmd_ray.tracking.journal import BY_HAND, PREVIOUS, PROMOTED, ROLLED_BACK, Journal, JournalEntry
from gmd_ray.tracking.promotion import Champion, Verdict, judge_licence, judge_promotion
from gmd_ray.tracking.recorder import MlflowRecorder
from gmd_ray.tracking.registry import forget_registration, kept_registration, register
from gmd_ray.tracking.runs import run_id_of
from gmd_ray.tracking.versions import RegisteredVersion, aliases_of, find_version, open_registry, read_reference

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from gmd_ray.evaluation import Evaluation
    from gmd_ray.teachers.catalogue.licence import Licence

log = logging.getLogger("gmd_ray.tracking")

AT_THE_END = "judged by the gates at the end of its run"
"""Reason of a promotion that nobody asked for by hand."""
_TRIES = 5
"""Times that a version is judged anew because another promotion came first."""


@dataclass(frozen=True)
class Decision:
    """The decision of the promotion gates about a version."""

    promoted: bool
    reasons: list[str]
    """One line per gate, in the order of the settings, then one per comparison with the champion, then one about the
    teacher's licence if it is asked for. Lines that refuse begin with `refused`."""
    version: str | None
    """Number of the version; None if the run is not tracked."""


def promote(
    cfg: Config, recorder: MlflowRecorder | NullRecorder, version: str | None, evaluation: Evaluation
) -> Decision:
    """Make `version` the champion if every gate of `cfg.tracking.gates` holds, and no champion is better.

    With `tracking.require_commercial_teacher`, the teacher's licence is one more gate.

    `promotion.judge_promotion` decides. The champion before keeps the alias `previous`. The version's tag `promotion`
    and the model's journal record the decision. If another promotion comes first, the version is judged anew, against
    the new champion.

    Raises:
        TrackingError: MLflow refuses, cannot be reached, or other promotions keep coming first.
    """
    if not isinstance(recorder, MlflowRecorder) or version is None:
        return Decision(False, ["tracking.enabled=false: nothing was registered, so nothing can be promoted"], None)
    model, uri = cfg.tracking.model, recorder.uri
    client = connect(uri)
    licence = teacher_licence(cfg.teacher) if cfg.tracking.require_commercial_teacher else None
    with tracking_errors(uri, f"promoting {model} version {version}"):
        candidate = RegisteredVersion(client, uri, client.get_model_version(model, version))
        decision = _held_back(candidate) or _decide(
            candidate, cfg.tracking.gates, licence, evaluation, AT_THE_END, anyway=False
        )
    recorder.tags({"promotion": "; ".join(decision.reasons)})
    for reason in decision.reasons:
        log.info("promotion gate: %s", reason)
    log.info("%s version %s %s", model, version, "is champion now" if decision.promoted else "stays challenger")
    return decision


def register_kept(cfg: Config) -> Decision | None:
    """Register and judge the student of a run that MLflow was away for at its end, from what the run has measured.

    Returns:
        the decision; None if no student of this run directory is waiting.

    Raises:
        DataError: the run's evaluation is gone.
        TrackingError: as `registry.register` and `promote`; the student stays noted.
    """
    student, run_id = kept_registration(cfg), run_id_of(cfg.out)
    if student is None or run_id is None:
        return None
    from gmd_ray.evaluation import load_evaluation

    evaluation = load_evaluation(cfg.out)
    recorder = MlflowRecorder(tracking_uri(cfg), run_id)
    decision = promote(cfg, recorder, register(cfg, recorder, student, evaluation), evaluation)
    forget_registration(cfg)
    return decision


def promote_version(cfg: Config, reference: str, reason: str, *, gates: bool = False, anyway: bool = False) -> Decision:
    """Make a registered version the champion if the gates hold for the values that travel with it.

    Nothing is restored or measured.

    Args:
        cfg: where the registry is; with `gates` also the gates.
        reference: as `versions.find_version` takes it.
        reason: why, for the journal.
        gates: judge by `cfg.tracking`; otherwise by the gates that the version was registered with.
        anyway: promote it against the gates; the journal keeps what they said.

    Raises:
        ConfigError: no such version, or no reason.
        TrackingError: as `promote`.
    """
    _need(reason)
    candidate = find_version(cfg, reference)
    kept = json.loads(candidate.tags.get("gates", "{}"))
    wanted, asked = cfg.tracking.gates, cfg.tracking.require_commercial_teacher
    if kept and not gates:
        wanted = [PromotionGate(**gate) for gate in kept["gates"]]
        asked = bool(kept["require_commercial_teacher"])
    licence = _kept_licence(candidate) if asked else None
    with tracking_errors(candidate.uri, f"promoting {candidate.reference}"):
        evaluation = candidate.evaluation()
        return _decide(candidate, wanted, licence, evaluation, reason, anyway=anyway)


def rollback(cfg: Config, model: str, reason: str, to: str | None = None) -> tuple[str, str | None]:
    """Make an earlier version the champion again; no gate is asked.

    Args:
        cfg: where the registry is.
        model: name of the registered model.
        reason: why, for the journal.
        to: number of the version; None takes the one that has the alias `previous`.

    Returns:
        the new champion and the old one.

    Raises:
        ConfigError: no reason, no such version, or nothing to go back to.
        TrackingError: MLflow refuses, cannot be reached, or somebody else has moved the champion meanwhile.
    """
    _need(reason)
    if to is None:
        client, uri = open_registry(cfg)
        with tracking_errors(uri, f"looking for {model}"):
            if not client.search_registered_models(name_filter(model)):
                raise ConfigError(f"no registered model {model!r}; see tracking.uri and tracking.model")
            Journal(client, model).champion()
            to = aliases_of(client, model).get(PREVIOUS)
        if to is None:
            raise ConfigError(f"{model}: no version has the alias {PREVIOUS!r}; give --to VERSION")
    found = find_version(cfg, f"models:/{model}/{to}")
    journal = Journal(found.client, model)
    with tracking_errors(found.uri, f"rolling {model} back"):
        before = journal.champion()
        if before == found.number:
            raise ConfigError(f"{model}: version {before} is the champion already")
        if not journal.move(found.number, before, ROLLED_BACK, reason, (), found.facts.run_id or None):
            raise TrackingError(f"{model}: somebody else has moved the champion meanwhile; see gmd-ray history")
    return found.number, before


def history(cfg: Config, model: str) -> list[JournalEntry]:
    """The journal of a model, oldest entry first.

    Raises:
        ConfigError, TrackingError: as `versions.find_version`.
    """
    name, _, _ = read_reference(model if model.startswith("models:/") else f"models:/{model}", cfg.tracking.model)
    client, uri = open_registry(cfg)
    with tracking_errors(uri, f"reading the journal of {name}"):
        if not client.search_registered_models(name_filter(name)):
            raise ConfigError(f"no registered model {name!r}; see tracking.uri and tracking.model")
        journal = Journal(client, name)
        journal.champion()  # an alias that was moved by hand becomes an entry
        return journal.entries()


def judge(cfg: Config, evaluation: Evaluation) -> Decision:
    """Judge a student by the gates of the settings as `promote` would, and change nothing.

    `promoted` says whether the run's own version is the champion now, which the verdicts do not change.

    Raises:
        TrackingError: MLflow refuses, or cannot be reached.
    """
    champion, own = None, None
    if cfg.tracking.enabled:
        uri, model = tracking_uri(cfg), cfg.tracking.model
        database = sqlite_path(uri)
        if database is None or Path(database).is_file():  # a database is not made for this
            client = connect(uri)
            with tracking_errors(uri, f"reading the versions of {model}"):
                if client.search_registered_models(name_filter(model)):
                    champion = _champion(client, uri, model, aliases_of(client, model).get("champion"))
                    own = _version_of(client, model, cfg.out)
    is_champion = champion is not None and champion.version == own
    licence = teacher_licence(cfg.teacher) if cfg.tracking.require_commercial_teacher else None
    verdicts = _verdicts(cfg.tracking.gates, licence, evaluation, None if is_champion else champion)
    return Decision(is_champion, [reason for _, reason in verdicts], own)


def _held_back(candidate: RegisteredVersion) -> Decision | None:
    """Refuse a version that a person took back: a scheduler that repeats the run does not overrule it."""
    journal, version = Journal(candidate.client, candidate.model), candidate.number
    before = journal.champion()
    about = [entry for entry in journal.entries() if entry.counts and version in (entry.version, entry.before)]
    if not about or about[-1].action not in (ROLLED_BACK, BY_HAND) or about[-1].before != version:
        return None
    last = about[-1]
    # MLflow does not say who moved an alias: the entry names who has noticed it.
    who = f"by {last.who} ({last.reason})" if last.action == ROLLED_BACK else f"(noticed by {last.who})"
    why = f"refused: version {version} was {last.action} {who}; `gmd-ray promote` judges it again"
    candidate.client.set_model_version_tag(candidate.model, version, "promotion", why)
    journal.refuse(version, before, AT_THE_END, [why], candidate.facts.run_id or None)
    return Decision(False, [why], version)


def _decide(
    candidate: RegisteredVersion,
    gates: Sequence[PromotionGate],
    licence: Licence | None,
    evaluation: Evaluation | None,
    reason: str,
    *,
    anyway: bool,
) -> Decision:
    """Judge a version, move the champion or note the refusal, and judge anew where another promotion came first."""
    client, model, version = candidate.client, candidate.model, candidate.number
    journal, run_id = Journal(client, model), candidate.facts.run_id or None
    for _ in range(_TRIES):
        before = journal.champion()
        if before == version:
            return Decision(
                True, [f"version {version} is the champion already: nothing changes, and nothing is noted"], version
            )
        if evaluation is None:
            lacking = f"no values by image travel with version {version}; run adapt again in its run directory"
            verdicts = [(False, f"refused: {lacking}")]
        else:
            verdicts = _verdicts(gates, licence, evaluation, _champion(client, candidate.uri, model, before))
        holds, reasons = all(may for may, _ in verdicts), [line for _, line in verdicts]
        if not holds and not anyway:
            client.set_model_version_tag(model, version, "promotion", _outcome(verdicts))
            journal.refuse(version, before, reason, reasons, run_id)
            return Decision(False, reasons, version)
        if journal.move(
            version, before, PROMOTED, reason if holds else f"against the gates: {reason}", reasons, run_id
        ):
            outcome = _outcome(verdicts) if holds else f"promoted against the gates ({reason}): {_outcome(verdicts)}"
            client.set_model_version_tag(model, version, "promotion", outcome)
            return Decision(True, reasons, version)
    raise TrackingError(f"{model}: other promotions keep coming first; try again later")


def _verdicts(
    gates: Sequence[PromotionGate], licence: Licence | None, evaluation: Evaluation, champion: Champion | None
) -> list[Verdict]:
    verdicts = judge_promotion(gates, evaluation, champion)
    return verdicts if licence is None else [*verdicts, judge_licence(licence)]


def _champion(client: MlflowClient, uri: str, model: str, number: str | None) -> Champion | None:
    if number is None:
        return None
    version = RegisteredVersion(client, uri, client.get_model_version(model, number))
    return Champion(version.number, version.tags, version.evaluation())


def _kept_licence(candidate: RegisteredVersion) -> Licence:
    from gmd_ray.teachers.catalogue.licence import Licence

    tags = candidate.tags
    return Licence(tags.get("teacher.licence", "unknown"), tags.get("teacher.licence_source", "the version's tags"))


def _version_of(client: MlflowClient, model: str, out: str) -> str | None:
    """The newest version of a model that the run at `out` has registered."""
    run_id = run_id_of(out)
    if run_id is None:
        return None
    versions = client.search_model_versions(f"run_id='{run_id}'")
    return max((str(found.version) for found in versions if found.name == model), key=int, default=None)


def _outcome(verdicts: Sequence[Verdict]) -> str:
    """The text of the tag `promotion`: the reasons, those that refuse first."""
    refusing, others = ([reason for may, reason in verdicts if may is which] for which in (False, True))
    return "; ".join([*refusing, *others]) if refusing else f"accepted: {'; '.join(others)}"


def _need(reason: str) -> None:
    if not reason.strip():
        raise ConfigError("--reason is empty: say why, for those who read the history")

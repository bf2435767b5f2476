"""The journal of a model's promotions: who, when, why and from which run, in one order that all processes agree on.

MLflow has no request that moves an alias only if nobody else has moved it. It does number the versions of a model one
after the other, whatever the database. So the journal of `NAME` is a registered model `NAME-promotions`, and each of
its versions is an entry: "the champion becomes 3, if it is 1". An entry counts if the entries before it have left that
champion. Of two promotions that both saw champion 1, the one with the lower number counts, and the other one learns it.
The alias follows the last entry that counts.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import random
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gmd_ray.config.secrets import redact
from gmd_ray.tracking.client import name_filter

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

log = logging.getLogger("gmd_ray.tracking")

CHAMPION, PREVIOUS = "champion", "previous"
SUFFIX = "-promotions"
"""Ending of the name of the registered model that holds a journal."""
PROMOTED, ROLLED_BACK, REFUSED, BY_HAND = "promoted", "rolled back", "refused", "moved by hand"
OVERTAKEN = "overtaken"
"""State of an entry whose champion was replaced before it came."""
_GRACE_MS = 60_000
"""Age of an entry below which an alias that differs is one that has not followed yet, not one moved by hand."""
_TRIES = 10


@dataclass(frozen=True)
class JournalEntry:
    """An attempt to change the champion, or a refusal to."""

    number: int
    action: str
    """`promoted`, `rolled back`, `refused`, `moved by hand` (with MLflow's own tools), or `overtaken`."""
    version: str
    """The version that it is about; empty if the alias was taken away by hand."""
    before: str | None
    """The champion that the decision was made against."""
    who: str
    """User and host."""
    at_ms: int
    """Milliseconds since the epoch, by the server's clock."""
    reason: str
    gates: tuple[str, ...]
    """The verdicts of the gates, a line each."""
    run_id: str | None
    """The run that made the version."""
    id: str = field(repr=False)
    applied: bool = field(repr=False)
    """True once the aliases have followed."""

    @property
    def counts(self) -> bool:
        """True if it has changed the champion."""
        return self.action in (PROMOTED, ROLLED_BACK, BY_HAND)

    def to_json(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.at_ms / 1000))
        keys = ("number", "action", "version", "before", "who", "reason", "run_id")
        return {"when": when, **{key: getattr(self, key) for key in keys}, "gates": list(self.gates)}


class Journal:
    """Reads and writes the journal of one registered model, and keeps its aliases in step."""

    def __init__(self, client: MlflowClient, model: str) -> None:
        self._client, self._model, self._name = client, model, f"{model}{SUFFIX}"

    def entries(self) -> list[JournalEntry]:
        """All entries, oldest first; empty where nothing was ever promoted."""
        found, token = [], None
        while True:
            page = self._client.search_model_versions(name_filter(self._name), max_results=1000, page_token=token)
            found += [_read(version) for version in page]
            token = page.token
            if not token:
                return _replayed(sorted(found, key=lambda entry: entry.number))

    def champion(self) -> str | None:
        """The present champion, after aliases are brought in step with the journal or the journal with them."""
        while True:
            last = _last(self.entries())
            alias = self._aliases().get(CHAMPION)
            if last is None or (last.version or None) == alias:
                return alias
            again = _last(self.entries())
            if again is not None and again.number == last.number:
                break  # nobody has moved the alias between the two looks
        if last.applied and time.time() * 1000 - last.at_ms > _GRACE_MS:
            self._append(BY_HAND, alias or "", last.version or None, "the alias was moved with other tools", (), None)
        elif last.applied:
            log.warning(
                "%s: the alias %s is at %s, and the history, whose last entry is young, says %s: put back",
                self._model,
                CHAMPION,
                alias or "no version",
                last.version or "no version",
            )
        self._follow()
        last = _last(self.entries())
        return last.version or None if last else None

    def move(
        self, version: str, before: str | None, action: str, reason: str, gates: Sequence[str], run_id: str | None
    ) -> bool:
        """Make `version` the champion if the champion is `before`; return True if it was.

        Args:
            version: the new champion.
            before: the champion that the caller has seen; None for none.
            action: `promoted` or `rolled back`.
            reason: why, in the user's words.
            gates: the verdicts that allowed it.
            run_id: the run that made the version.
        """
        mine = self._append(action, version, before, reason, gates, run_id)
        won = any(entry.id == mine and entry.counts for entry in self.entries())
        self._follow()
        return won

    def refuse(self, version: str, before: str | None, reason: str, gates: Sequence[str], run_id: str | None) -> None:
        """Note that the gates have refused a version; an entry that only repeats the last one is left out."""
        entries = self.entries()
        last = entries[-1] if entries else None
        if last is None or (last.action, last.version, last.gates) != (REFUSED, version, tuple(gates)):
            self._append(REFUSED, version, before, reason, gates, run_id)

    def _append(
        self, action: str, version: str, before: str | None, reason: str, gates: Sequence[str], run_id: str | None
    ) -> str:
        """Write an entry; its id is returned, for a request that the network repeats may write it twice."""
        from mlflow.exceptions import MlflowException

        entry_id, who = uuid.uuid4().hex, _who()
        tags = {
            "id": entry_id,
            "action": action,
            "version": version,
            "before": before or "",
            "who": who,
            "reason": redact(" ".join(reason.split()))[:2000],
            "gates": json.dumps([redact(line) for line in gates]),
            "run": run_id or "",
        }
        self._make()
        source = f"models:/{self._model}/{version or before}"
        about = f"version {version or '-'} {action} (champion {before or '-'}) by {who}: {tags['reason']}"
        for attempt in range(_TRIES):
            try:
                self._client.create_model_version(
                    self._name, source, tags=tags, description=about, await_creation_for=0
                )
                break
            except MlflowException:
                # MLflow itself tries three times to find a number that nobody has taken meanwhile.
                if attempt == _TRIES - 1 or any(entry.id == entry_id for entry in self.entries()):
                    raise
                _pause(attempt + 1)
        return entry_id

    def _follow(self) -> None:
        """Set the aliases to what the journal says, until no other entry has come in the meantime."""
        from mlflow.exceptions import MlflowException

        failures = 0
        while True:
            entries = self.entries()
            last = _last(entries)
            if last is None:
                return
            try:
                self._set_aliases(_previous(entries), last)
            except MlflowException:
                # MLflow looks for an alias or a tag and then inserts it: of two that do so at once, PostgreSQL
                # refuses one.
                failures += 1
                if failures == _TRIES:
                    raise
                _pause(failures)
                continue
            now = _last(self.entries())
            if now is not None and now.number == last.number:
                return

    def _set_aliases(self, previous: str | None, last: JournalEntry) -> None:
        aliases = self._aliases()
        for alias, version in ((PREVIOUS, previous), (CHAMPION, last.version or None)):
            if version is None and alias in aliases:
                self._client.delete_registered_model_alias(self._model, alias)
            elif version is not None and aliases.get(alias) != version:
                self._client.set_registered_model_alias(self._model, alias, version)
        if not last.applied:
            self._client.set_model_version_tag(self._name, str(last.number), "applied", "true")

    def _aliases(self) -> dict[str, str]:
        # A missing alias is an error with one of two codes, depending on the store; the list of aliases is neither.
        found = self._client.get_registered_model(self._model).aliases
        return {alias: str(version) for alias, version in found.items()}

    def _make(self) -> None:
        about = f"The promotions of {self._model}, one per version, written by gmd-ray; `gmd-ray history` prints them."
        make_model(self._client, self._name, about)


def make_model(client: MlflowClient, name: str, about: str | None = None) -> None:
    """Make a registered model that may exist already."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description=about)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _pause(failures: int) -> None:
    """Wait for a moment that differs between processes, and grows."""
    time.sleep(random.uniform(0, 0.1 * failures))


def _read(version: ModelVersion) -> JournalEntry:
    tags = version.tags
    return JournalEntry(
        number=int(version.version),
        action=tags.get("action", ""),
        version=tags.get("version", ""),
        before=tags.get("before") or None,
        who=tags.get("who", ""),
        at_ms=int(version.creation_timestamp or 0),
        reason=tags.get("reason", ""),
        gates=tuple(json.loads(tags.get("gates", "[]"))),
        run_id=tags.get("run") or None,
        id=tags.get("id", ""),
        applied=tags.get("applied") == "true",
    )


def _replayed(entries: Sequence[JournalEntry]) -> list[JournalEntry]:
    """The entries, with `overtaken` for those that expected another champion. The first one tells how it began."""
    champion, begun = None, False
    done: list[JournalEntry] = []
    for entry in entries:
        if any(entry.id == known.id for known in done):  # the network has repeated a request
            continue
        if entry.counts:
            if begun and entry.before != champion:
                entry = replace(entry, action=OVERTAKEN)
            else:
                champion, begun = entry.version or None, True
        done.append(entry)
    return done


def _last(entries: Sequence[JournalEntry]) -> JournalEntry | None:
    return next((entry for entry in reversed(entries) if entry.counts), None)


def _previous(entries: Sequence[JournalEntry]) -> str | None:
    """The champion before the present one."""
    last = _last(entries)
    found = [entry.before for entry in entries if entry.counts and entry.before and entry.before != entry.version]
    return next((version for version in reversed(found) if last is None or version != last.version), None)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may have a user id without a name
        user = "unknown"
    return f"{user}@{os.uname().nodename}"

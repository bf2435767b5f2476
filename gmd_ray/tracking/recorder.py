"""The recorder of the stages of a run that MLflow tracks."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gmd_ray.config.places import name_of
from gmd_ray.config.secrets import redact
from gmd_ray.errors import ConfigError, GmdError, ResumeMismatchError
from gmd_ray.storage import read_bytes
from gmd_ray.text import one_line
from gmd_ray.tracking.client import is_refusal, store_errors
from gmd_ray.tracking.outbox import Entry, Outbox

log = logging.getLogger("gmd_ray.tracking")

PARENT_TAG = "mlflow.parentRunId"
STAGE_TAG = "gmd_ray.stage"

_TEXT = (".json", ".jsonl", ".yaml", ".yml", ".md", ".txt", ".html")
_MAX_KEY = 250
_MAX_TAG = 8000
_MAX_PARAM = 6000
_MAX_METRICS = 1000
_MAX_TAGS = 100
# The tag `changed.<key>` of a parameter must fit as well.
_MAX_PARAM_KEY = _MAX_KEY - len("changed.")


@dataclass(frozen=True)
class Before:
    """The state in which an earlier command left a run that is resumed."""

    status: str
    end_time: int | None
    """End of the run in milliseconds since the epoch; None if it has not ended."""


@dataclass(frozen=True)
class RunDataset:
    """A data set that a run has read."""

    name: str
    digest: str
    """Hexadecimal digest of its content; MLflow shows the first 36 digits."""
    context: str
    """`training` or `test`."""
    source: str
    """Path or URL."""
    profile: Mapping[str, Any]
    """Further facts, such as counts."""

    def facts(self) -> dict[str, str]:
        """The content of an outbox entry, with `***` for credentials in URLs."""
        return {
            "name": self.name,
            "digest": self.digest[:36],
            "context": self.context,
            "source": json.dumps({"uri": redact(self.source)}),
            "profile": json.dumps({**self.profile, "digest": self.digest}),
        }


class MlflowRecorder:
    """Writes to one MLflow run. It can be pickled, and used in any process that reaches `uri`.

    Its methods never raise once the run exists; `Outbox` keeps entries while the server is away.
    """

    def __init__(
        self,
        uri: str,
        run_id: str,
        *,
        prefix: str = "",
        outbox: Outbox | None = None,
        before: Before | None = None,
        is_stage: bool = False,
    ) -> None:
        """Attach to a run that exists.

        Args:
            uri: address of MLflow.
            run_id: id of the run.
            prefix: put before the keys of parameters, metrics and tags.
            outbox: shared with other recorders of this process; a new one by default.
            before: state of a resumed run; None for a run that was made just now.
            is_stage: True for a child run.
        """
        self.uri, self.run_id, self.prefix, self.before, self.is_stage = uri, run_id, prefix, before, is_stage
        self.outbox = outbox or Outbox(uri)
        self.deleted = False

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters. Nested mappings become dotted keys; values too long for MLflow are cut and end in '...'."""
        flat = {_key(self.prefix + k, _MAX_PARAM_KEY): _cut(v, _MAX_PARAM) for k, v in flatten(values).items()}
        if flat:
            self._put("params", (flat,), f"parameters {_some(flat)}")

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log figures, at a step if there is one. Values that are not finite are left out with a warning."""
        now = int(time.time() * 1000)
        kept = []
        for key, value in values.items():
            if math.isfinite(value):
                kept.append([_key(self.prefix + key), float(value), now, step or 0])
            else:
                log.warning("metric %s is %s%s: not logged", key, value, "" if step is None else f" at step {step}")
        for start in range(0, len(kept), _MAX_METRICS):
            part = kept[start : start + _MAX_METRICS]
            self._put("batch", (part, []), f"metrics {_some([metric[0] for metric in part])}")

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the run, with `***` for credentials in URLs."""
        tags = [[_key(self.prefix + key), _cut(redact(str(value)), _MAX_TAG)] for key, value in values.items()]
        for start in range(0, len(tags), _MAX_TAGS):
            part = tags[start : start + _MAX_TAGS]
            self._put("batch", ([], part), f"tags {_some([tag[0] for tag in part])}")

    def datasets(self, datasets: Sequence[RunDataset]) -> None:
        """Log dataset inputs; one with a name and digest that the run has already changes nothing."""
        facts = [dataset.facts() for dataset in datasets]
        if facts:
            self._put("inputs", (facts,), f"datasets {_some([dataset.name for dataset in datasets])}")

    def artifact(self, path: str, folder: str | None = None) -> None:
        """Copy a file to `folder` of the run's artifacts; in text files, credentials in URLs become `***`.

        Args:
            path: a path or URL.
            folder: folder of the artifacts; None for their root.
        """
        name = name_of(path)
        if (text := _with_credentials(path)) is not None:
            self.text(text, f"{folder}/{name}" if folder else name)
        else:
            self._put("artifact", (str(path), folder), f"file {path}")

    def text(self, content: str, name: str) -> None:
        """Write `content` to the artifact `name`, with `***` for credentials in URLs."""
        self._put("text", (redact(content), name), f"file {name}")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[MlflowRecorder]:
        """Open a child run for a stage, or resume the one of that name; its status is set as by `ending`.

        If MLflow cannot make the child now, its figures go to this run, with `name.` before their keys.
        """
        child = self._child(name)
        with child.ending() if child.run_id != self.run_id else contextlib.nullcontext():
            yield child

    @contextlib.contextmanager
    def ending(self, first: Callable[[], None] | None = None) -> Iterator[None]:
        """Give the run its final status when a `with` block ends: FINISHED, FAILED, or KILLED (Ctrl-C or a signal).

        A refused command leaves no trace: a resumed run gets its earlier status back, and a run that was made for the
        command is deleted.

        Args:
            first: called before the status is set, unless the command is refused.
        """
        status: str | None = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except GmdError as error:
            if self._is_refused(error):
                status = None
            raise
        finally:
            if status is None:
                self._undo()
            else:
                if first is not None:
                    first()
                self._put("status", (status,), f"status {status}")

    def _is_refused(self, error: GmdError) -> bool:
        """Return True if `error` refuses the command, and False if it is the failure of a run that has begun."""
        filled = self.outbox.filled_runs
        idle = self.run_id not in filled if self.is_stage else not filled  # and nothing about its stages
        if self.before is not None:
            return idle or isinstance(error, ConfigError | ResumeMismatchError)
        return idle and isinstance(error, ValueError | ResumeMismatchError)

    def _undo(self) -> None:
        if self.before is None:
            self.deleted = True
            self._put("delete", (), "deletion of the run of a refused command")
        elif self.before.status != "RUNNING":  # its status is RUNNING already
            self._put("status", (self.before.status, self.before.end_time), f"status {self.before.status}")

    @property
    def unsent(self) -> str:
        """After the end of the run: what could not be sent, in words; empty if all was."""
        return self.outbox.unsent

    def _put(self, kind: str, payload: tuple[Any, ...], label: str) -> None:
        if kind not in ("status", "delete"):
            self.outbox.filled_runs.add(self.run_id)
        self.outbox.put(Entry(self.run_id, kind, payload, label))

    def _child(self, name: str) -> MlflowRecorder:
        try:
            if self.outbox.away:
                raise ConnectionError("it did not answer a moment ago")
            run_id, before = self._child_run(name)
            return MlflowRecorder(self.uri, run_id, outbox=self.outbox, before=before, is_stage=True)
        except store_errors() as error:
            kind = "refuses" if is_refusal(error) else "cannot make"
            log.warning(
                "MLflow at %s %s the run of stage %s (%s); its figures go to the parent run as %s.*",
                redact(self.uri),
                kind,
                name,
                redact(one_line(error, 200)),
                name,
            )
            return MlflowRecorder(self.uri, self.run_id, prefix=f"{self.prefix}{name}.", outbox=self.outbox)

    def _child_run(self, name: str) -> tuple[str, Before | None]:
        client = self.outbox.client
        experiment = client.get_run(self.run_id).info.experiment_id
        children = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{self.run_id}'", max_results=1000)
        for run in children:
            if run.data.tags.get(STAGE_TAG) == name:
                client.update_run(run.info.run_id, status="RUNNING")
                return run.info.run_id, Before(run.info.status, run.info.end_time)
        tags = {PARENT_TAG: self.run_id, STAGE_TAG: name}
        return client.create_run(experiment, tags=tags, run_name=name).info.run_id, None


def flatten(values: Mapping[str, Any], head: str = "") -> dict[str, str]:
    """Flatten a nested mapping to dotted keys: `{"a": {"b": 1}}` -> `{"a.b": "1"}`; lists become JSON, None `null`.

    Credentials in URLs become `***`.
    """
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{head}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        elif isinstance(value, str):
            flat[name] = redact(value)
        else:
            flat[name] = redact(json.dumps(value, default=str))
    return flat


def _with_credentials(path: str) -> str | None:
    """The content of a text file that contains credentials, such as URLs in a manifest; None for any other file."""
    if not name_of(path).endswith(_TEXT):
        return None
    with contextlib.suppress(OSError):  # sending it says so
        text = (read_bytes(path) or b"").decode(errors="replace")
        return text if redact(text) != text else None
    return None


def _key(name: str, limit: int = _MAX_KEY) -> str:
    """`name` with the characters and the length that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:limit]


def _cut(value: str, limit: int) -> str:
    return value if len(value) <= limit else f"{value[: limit - 3]}..."


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")

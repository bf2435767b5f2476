"""Jobs on one small Ray head: submitted, followed and stopped; the series of a running job, scraped from the node."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.errors import ExitCode
from tests import PATIENCE_S
from tests.cluster.series import NAME, NEEDS_A_GPU, expressions
from tests.servers.heads import JOB_S, Head, running_head

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_ray")]

SIZE = WorldSize(seed=7, target=40, severe=4, source=6, target_test=2, source_test=2)
STEPS = 12
SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@dataclass
class Series:
    """Samples of all scrapes: name and labels -> last value."""

    values: dict[tuple[str, str], float] = field(default_factory=dict)

    def take(self, text: str) -> None:
        for name, labels, value in SAMPLE.findall(text):
            self.values[name, labels] = float(value)

    def names(self) -> set[str]:
        return {name for name, _ in self.values}

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums by a label."""
        sums: dict[str, float] = {}
        for (found, labels), value in self.values.items():
            if found == name:
                key = re.search(rf'\b{label}="([^"]*)"', labels)
                assert key is not None, labels
                sums[key[1]] = sums.get(key[1], 0) + value
        return sums


@contextmanager
def scraped(head: Head) -> Iterator[Series]:
    """Scrape the node twice a second within the block."""
    series, over = Series(), threading.Event()

    def scrape() -> None:
        while not over.wait(0.5):
            with suppress(OSError), urllib.request.urlopen(head.metrics, timeout=10) as answer:
                series.take(answer.read().decode())

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield series
    finally:
        over.set()
        thread.join()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running_head() as found:
        yield found


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of a small run on the toy world; `out` is its last."""
    folder = tmp_path_factory.mktemp("job")
    prepare(folder / "photos", SIZE)
    keys = {
        "target.path": "target_lq", "source.hq": "source_hq", "source.lq": "source_lq",
        "evaluation.target_lq": "target_test_lq", "evaluation.target_hq": "target_test_hq",
        "evaluation.source_hq": "source_test_hq", "evaluation.source_lq": "source_test_lq",
        "evaluation.pairs_hq": "target_hq",
    }  # fmt: skip
    return [
        "preset=toy", "prepare=null", *(f"{key}={folder / 'photos' / name}" for key, name in keys.items()),
        "teacher.steps=10",
        "teacher.pool.min=1", "teacher.pool.max=1", "scorer.threshold=4", "generation.rows_per_block=2",
        f"training.steps={STEPS}", "training.batch_size=2", "training.checkpoint_every=4", "training.log_every=1",
        "evaluation.metrics=[psnr]", "controls=[]", "log_interval_s=1",
        "tracking.gates=[{metric: psnr, dataset: target, against: baseline, min_gain: 50}]", f"out={folder / 'run'}",
    ]  # fmt: skip


def test_an_adapt_is_followed_to_its_refusal_and_every_series_is_there(head: Head, words: list[str]) -> None:
    with scraped(head) as series:
        status, output = head.submitted("adapt", *words)
    out = Path(words[-1].removeprefix("out="))
    assert status == ExitCode.REFUSED, output
    [job] = re.findall(r"^job      (\S+)$", output, re.MULTILINE)
    for line in (f"run      {out}", f"report   {out}/report.html", f"job {job}: FAILED (exit status 4, refused)"):
        assert line in output.splitlines(), output
    assert "refused: target psnr" in output, "the job's own words"
    assert (out / "report.html").is_file()
    facts = head.info(job)
    assert isinstance(facts["metadata"], dict)
    assert facts["metadata"].items() >= {"job_name": "gmd-ray adapt", "verb": "adapt", "out": str(out)}.items()
    assert isinstance(facts["runtime_env"], dict)
    assert facts["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "75"

    wanted = {name for text in expressions() for name in NAME.findall(text)} - NEEDS_A_GPU
    assert wanted <= series.names(), sorted(wanted - series.names())

    # The books of the metrics are those of the store.
    manifest = json.loads((out / "pairs" / "manifest.json").read_text())
    states = {state: count for state in ("accepted", "rejected", "failed") if (count := manifest[state])}
    assert series.by("ray_gmd_images_total", "state") == states
    label = f"{out.parent.name}/run"
    rows = ds.dataset(out / "pairs" / "rows").to_table(columns=["score", "seconds_project"])
    assert series.by("ray_gmd_score_count", "run") == {label: len(rows) - rows["score"].null_count}
    scores, seconds = rows["score"].to_numpy(), rows["seconds_project"].to_numpy()
    for bound, count in series.by("ray_gmd_score_bucket", "le").items():
        assert count == (scores <= float(bound)).sum(), bound
    assert series.by("ray_gmd_stage_seconds_count", "stage") == dict.fromkeys(
        ("restore", "project", "score"), len(rows)
    )
    assert 0 < series.by("ray_gmd_replica_busy_seconds_total", "stage")["project"] < 2 * seconds.sum() + 1
    assert series.by("ray_gmd_train_step", "fine_tune") == {"adapted": STEPS}
    assert abs(time.time() - series.by("ray_gmd_checkpoint_time_seconds", "fine_tune")["adapted"]) < JOB_S
    actors = series.by("ray_gmd_replicas", "replica")
    assert {re.sub(r"/\d+/", "/N/", name) for name in actors} >= {"project/N/teacher"}, actors
    datasets = series.by("ray_data_operator_queued_blocks", "dataset")
    assert {name.rpartition("_")[0].rpartition("_")[0] for name in datasets} >= {"gmd_generate"}, datasets


def test_a_job_that_was_left_is_followed_later(head: Head, tmp_path: Path) -> None:
    status, output = head.submitted("status", str(tmp_path), "--name", "left", "--no-wait")
    assert (status, "job      left" in output) == (0, True)
    status, output = head.submitted("--follow", "left")
    assert status == ExitCode.DATA, output
    assert "no pair store here" in output
    status, output = head.submitted("--follow", "nobody")
    assert (status, "does not know it" in output) == (ExitCode.FAILED, True)


def test_without_the_token(head: Head) -> None:
    poor = replace(head, env={k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")})
    status, output = poor.submitted("status", "/nowhere")
    assert status == ExitCode.SETTINGS, output
    assert "wants a token: set RAY_AUTH_TOKEN" in output


def test_ctrl_c_leaves_the_job_or_stops_it(head: Head, words: list[str], tmp_path: Path) -> None:
    long = ["teacher.steps=400", "generation.grace_s=3", f"out={tmp_path / 'run'}"]
    with head.submit("generate", *words, *long, "--name", "long", "--stop-time", "20") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "generate 0/" in line:
                break
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == ExitCode.INTERRUPTED, output
    assert f"job long goes on; follow it with: gmd-ray submit --follow long --address {head.address}" in output
    assert head.info("long")["status"] == "RUNNING"
    with head.submit("--follow", "long", "--stop-on-interrupt") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "generate 0/" in line:
                break
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == ExitCode.INTERRUPTED, output
    assert "job long: STOPPED (exit status 5, interrupted)" in output
    assert head.info("long")["status"] == "STOPPED"

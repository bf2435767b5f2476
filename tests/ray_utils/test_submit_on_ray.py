"""Jobs on one small Ray head: submitted, followed and stopped; the series of a running job, scraped from the node."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.errors import ExitCode
from tests.cluster.series import NAME, NEEDS_A_GPU, expressions
from tests.ray_utils.sockets import family

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_ray")]

ROOT = Path(__file__).resolve().parents[2]
SIZE = WorldSize(seed=7, target=40, severe=4, source=6, target_test=2, source_test=2)
STEPS = 12
LEFT_BEHIND = ["--exclude", "gmd_ray/demo/photos/weights", "--exclude", "gmd_ray/demo/photos/photographs"]
UP_S, JOB_S = 180, 900
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


@dataclass
class Head:
    address: str
    metrics: str
    env: dict[str, str]

    def submit(self, *words: str) -> subprocess.Popen[str]:
        """Start `gmd-ray submit`, with SIGINT as a terminal leaves it."""
        return subprocess.Popen(
            [sys.executable, "-m", "gmd_ray.cli", "submit", *words, "--address", self.address, *LEFT_BEHIND],
            cwd=ROOT, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip

    def submitted(self, *words: str) -> tuple[int, str]:
        with self.submit(*words) as process:
            output = process.communicate(timeout=JOB_S)[0]
        return process.returncode, output

    def info(self, job: str) -> dict[str, object]:
        request = urllib.request.Request(f"{self.address}/api/jobs/{job}")
        request.add_header("Authorization", f"Bearer {self.env['RAY_AUTH_TOKEN']}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, object] = json.load(answer)
        return found

    @contextmanager
    def scraped(self) -> Iterator[Series]:
        """Scrape the node twice a second within the block."""
        series, over = Series(), threading.Event()

        def scrape() -> None:
            while not over.wait(0.5):
                with suppress(OSError), urllib.request.urlopen(self.metrics, timeout=10) as answer:
                    series.take(answer.read().decode())

        thread = threading.Thread(target=scrape, daemon=True)
        thread.start()
        try:
            yield series
        finally:
            over.set()
            thread.join()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    temp = tempfile.mkdtemp(prefix="gmd-", dir="/tmp")  # short: Ray's sockets lie below it
    port, dashboard, exported, client, http, grpc = free_ports(6)
    env = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64, "RAY_USAGE_STATS_ENABLED": "0", "HOME": temp,
        "RAY_metrics_report_interval_ms": "4000", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    for name in ("RAY_ADDRESS", "PYTHONPATH"):  # a job sees the package in its working directory, not this checkout
        env.pop(name, None)
    command = [
        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=4",
        "--num-gpus=0", "--object-store-memory=200000000", f"--temp-dir={temp}", "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--metrics-export-port={exported}",
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={http}",
        f"--dashboard-agent-grpc-port={grpc}", "--disable-usage-stats",
    ]  # fmt: skip
    log = Path(temp, "start.log")
    with log.open("w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    found = Head(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{exported}/metrics", env)
    try:
        end = time.monotonic() + UP_S
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            with suppress(OSError):
                request = urllib.request.Request(f"{found.address}/api/jobs/")
                request.add_header("Authorization", f"Bearer {'a' * 64}")
                with urllib.request.urlopen(request, timeout=5), urllib.request.urlopen(found.metrics, timeout=5):
                    break
            time.sleep(0.5)
        yield found
    finally:
        members = family(process.pid)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        process.wait()
        shutil.rmtree(temp, ignore_errors=True)


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
    with head.scraped() as series:
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
    poor = Head(head.address, head.metrics, {k: v for k, v in head.env.items() if not k.startswith("RAY_AUTH")})
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
        output = process.communicate(timeout=60)[0]
    assert process.returncode == ExitCode.INTERRUPTED, output
    assert f"job long goes on; follow it with: gmd-ray submit --follow long --address {head.address}" in output
    assert head.info("long")["status"] == "RUNNING"
    with head.submit("--follow", "long", "--stop-on-interrupt") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "generate 0/" in line:
                break
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == ExitCode.INTERRUPTED, output
    assert "job long: STOPPED (exit status 5, interrupted)" in output
    assert head.info("long")["status"] == "STOPPED"

"""Secrets are planted wherever a user may put one, and are in no byte of what a run writes, prints or serves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

import pyarrow.fs as fs
import pytest

from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.errors import ExitCode
from tests import PATIENCE_S
from tests.ray_utils.sockets import LOOPBACK, listening
from tests.safety.searching import search
from tests.servers.heads import ROOT, Head, running_head
from tests.servers.running import MlflowServer, S3Server, running_mlflow

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_ray")]

SIZE = WorldSize(seed=7, target=8, severe=2, source=6, target_test=3, source_test=2)
PLANTED = {
    "HF_TOKEN": "planted-hub-token",
    "RAY_AUTH_TOKEN": "planted-ray-token-0123456789abcdef",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password",
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token",
    "AWS_SECRET_ACCESS_KEY": "planted/aws+key",
    "AWS_SESSION_TOKEN": "planted-session//token=",
    "GRAFANA_PASSWORD": "planted-grafana",
    "POSTGRES_PASSWORD": "planted-postgres",
    "RAY_JOB_HEADERS": '{"X-Proxy": "Bearer planted-header"}',
    # Settings refer to these; the others nobody names.
    "TRACKING": "planted-tracking@uri",
    "STORE_KEY": "planted-store-key",
    "SIGNATURE": "planted-signature",
    "PROMPT": "planted-override",
}
"""Variable -> its value."""
SECRETS = [*(value for name, value in PLANTED.items() if name != "RAY_JOB_HEADERS"), "planted-header", "planted-typed"]
VISIBLE = "planted-visible"
"""The name of an experiment and of a photo, which are no secrets: the search has to find it."""
NOWHERE = "s3://planter:planted-typed@nowhere/x?scheme=http&endpoint_override=127.0.0.1%3A1"
VERBS = """
import json, sys
from gmd_ray.cli import main
for words in json.load(open(sys.argv[1])):
    print("$", words[0], flush=True)
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code
    print("status", status, flush=True)
"""


@dataclass
class Place:
    """One folder that holds whatever is written, on one Ray head, with the services of a run."""

    head: Head
    mlflow: MlflowServer
    photos: str
    """URL of the photos, with a key in it."""
    told: list[str] = field(default_factory=list)
    heard: set[tuple[str, str, int]] = field(default_factory=set)
    """(program, address, port) of all sockets on which the head and its children have listened."""

    @property
    def out(self) -> Path:
        return self.head.folder / "run"

    def words(self) -> list[str]:
        world = self.head.folder / "world"
        keys = {
            "source.hq": "source_hq", "source.lq": "source_lq", "evaluation.target_lq": "target_test_lq",
            "evaluation.target_hq": "target_test_hq", "evaluation.source_hq": "source_test_hq",
            "evaluation.source_lq": "source_test_lq",
        }  # fmt: skip
        return [
            "preset=toy", "prepare=null", f"out={self.out}", *(f"{key}={world / name}" for key, name in keys.items()),
            f"target.path={self.photos}", "evaluation.pairs_hq=null", "controls=[]",
            f"tracking.uri={self.mlflow.url.replace('http://', 'http://me:${oc.env:TRACKING}@')}",
            "evaluation.weights.niqe=https://host/niqe.mat?X-Amz-Signature=${oc.env:SIGNATURE}&a=1",
            "pretrain.architecture=Net", "pretrain.arguments.token=${oc.env:PROMPT}",
            f"tracking.experiment={VISIBLE}",
            "tracking.gates=[{metric: psnr, dataset: target, against: baseline, min_gain: -50}]",
            "teacher.steps=1", "teacher.injection.steps=1", "teacher.pool.min=1", "teacher.pool.max=1",
            "scorer.threshold=1", "generation.rows_per_block=4",
            "training.num_workers=2", "training.cpus_per_worker=1", "training.steps=4", "training.batch_size=4",
            "training.checkpoint_every=2", "training.log_every=2",
            "evaluation.metrics=[psnr]", "evaluation.report_images=2",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        return {**self.head.env, "PYTHONPATH": str(ROOT)}

    def verbs(self, commands: list[list[str]]) -> str:
        """Run commands of gmd-ray one after another in one process, and return all that they tell."""
        file = self.head.folder / "commands.json"
        file.write_text(json.dumps(commands))
        done = subprocess.run(
            [sys.executable, "-c", VERBS, str(file)], cwd=self.head.folder, env=self.environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600, check=False,
        )  # fmt: skip
        file.unlink()
        self.told.append(done.stdout)
        return done.stdout

    @contextmanager
    def listened(self) -> Iterator[None]:
        """Look for listening sockets within the block."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.3):
                self.heard.update(listening(self.head.pid))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextmanager
    def served(self) -> Iterator[tuple[str, int]]:
        """The address of `gmd-ray serve` on the run, and its process."""
        command = [sys.executable, "-m", "gmd_ray.cli", "serve", str(self.out), "--port", "0"]
        process = subprocess.Popen(
            command, cwd=self.head.folder, env=self.environment(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            lines = iter(process.stdout.readline, "")
            [address] = re.findall(r"http://\S+", next(line for line in lines if "http://" in line))
            yield address, process.pid
        finally:
            process.terminate()
            self.told.append(process.communicate(timeout=PATIENCE_S)[0])


@pytest.fixture(scope="module")
def place(s3_server: S3Server) -> Iterator[Place]:
    # Ray's own name for a cluster that keeps to its machine (docs/cluster.md).
    variables = {**PLANTED, "AWS_ACCESS_KEY_ID": "planter", "MLFLOW_TRACKING_USERNAME": "planter"}
    with running_head({**variables, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}) as head:
        prepare(head.folder / "world", SIZE)
        server = s3_server.url.removeprefix("http://")
        options = f"scheme=http&endpoint_override={quote(server, safe='')}&region=us-east-1"
        s3_server.make_bucket("planted")
        store, _ = fs.FileSystem.from_uri(f"s3://testing:testing-secret@planted?{options}")
        for photo in sorted((head.folder / "world" / "target_lq").glob("*.png")):
            with store.open_output_stream(f"planted/photos/{photo.name}") as stream:
                stream.write(photo.read_bytes())
        with store.open_output_stream(f"planted/photos/{VISIBLE}.png") as stream:
            stream.write(b"torn")
        files = head.folder / "mlflow"
        files.mkdir()
        secrets = {name: value for name, value in variables.items() if not name.startswith("RAY_")}
        with running_mlflow(files / "log", f"sqlite:///{files}/mlflow.db", str(files / "artifacts"), secrets) as mlflow:
            yield Place(head, mlflow, f"s3://planter:${{oc.env:STORE_KEY}}@planted/photos?{options}")


def test_the_whole_chain_tells_none(place: Place) -> None:
    head, out, words = place.head, place.out, place.words()
    with place.listened():
        status, output = head.submitted("adapt", *words)
    place.told.append(output)
    assert status in (ExitCode.DONE, ExitCode.REFUSED), output
    [job] = re.findall(r"^job      (\S+)$", output, re.MULTILINE)
    place.told.append(json.dumps(head.info(job)))
    where = [word for word in words if word.startswith(("out=", "tracking.uri="))]
    where.append("tracking.model=gmd-toy-student")
    failing = [f"out={head.folder / 'other'}", "tracking.enabled=false", "ray.enabled=false"]
    told = place.verbs(
        [
            ["status", str(out)], ["status", str(out), "--json"], ["status", str(out), "--image", f"{VISIBLE}.png"],
            ["verify", str(out), "--deep"], ["config", *words], ["config", "--explain", "tracking.uri"],
            ["plan", *words], ["check", *words, "ray.num_cpus=4"], ["gate", str(out), "--html", str(out / "gate.html")],
            ["sheet", str(out)], ["history", *where], ["trace", "models:/gmd-toy-student/1", *where],
            ["preview", *words, "--photos", "2"], ["export", *words, "--to", str(head.folder / "pairs")],
            # Mistakes, whose messages repeat what was given.
            ["generate", *words, *failing, f"target.path={NOWHERE}"],
            ["generate", *words, *failing, "tracking.enabled=true", "tracking.uri=http://me:planted-typed@127.0.0.1:1"],
            ["generate", *words, *failing, "teacher.path=https://me:planted-typed@host/x", "a.b=https://planted-typed@x"],
            ["generate", *words, *failing, "training.steps=${oc.env:PROMPT}"],
            ["status", NOWHERE],
        ]
    )  # fmt: skip
    with place.served() as (address, _):
        for page in ("", "pairs", "report.html", f"pair?id={VISIBLE}.png", "pairs?find=planted-hub"):
            try:
                with urllib.request.urlopen(f"{address}{page}", timeout=PATIENCE_S) as answer:
                    place.told.append(answer.read().decode())
            except urllib.error.HTTPError as error:
                place.told.append(error.read().decode())

    (head.folder / "told").write_text("\n".join(place.told))
    kept = {path.name for path in head.folder.rglob("*") if path.is_file()}
    assert {"report.html", "preview.html", "gate.html", "sheet.html", "metrics.parquet", "mlflow.db", "told"} <= kept
    assert any(name.startswith("worker-") for name in kept), "Ray's logs"
    # The search finds what is no secret: in rows that are compressed, in the database, in Ray's logs, in what was told.
    found = search(head.folder, [*SECRETS, VISIBLE])
    seen = found.pop(VISIBLE)
    for pattern in (
        "run/pairs/rows/part-.*rows",
        r"mlflow/mlflow\.db",
        r"session_.*/logs/",
        "told",
        r"run/config\.yaml",
    ):
        assert any(re.search(pattern, name) for name in seen), (pattern, seen)
    assert found == {}
    statuses = re.findall(r"^status (\w+)$", told, re.MULTILINE)
    assert statuses[:3] == ["0", "0", "0"], told
    assert set(statuses[4:8] + statuses[9:14]) == {"0"}, told
    assert "0" not in statuses[14:], told
    assert (out / "config.yaml").stat().st_mode & 0o077 == 0


def test_nothing_of_it_listened_beyond_loopback(place: Place) -> None:
    """Ray's head with dashboard, agents and metrics, the workers of the job, and the pages of a run."""
    assert len({port for _, _, port in place.heard}) >= 8
    assert any("RayTrainWorker" in program for program, _, _ in place.heard), "the fine-tune was looked at"
    with place.served() as (address, pid):
        pages = set(listening(pid))
        assert int(address.rstrip("/").rpartition(":")[2]) in {port for _, _, port in pages}
    assert [entry for entry in place.heard | pages if entry[1] not in LOOPBACK] == []


def test_a_token_is_needed_even_there(place: Place) -> None:
    poor = replace(place.head, env={k: v for k, v in place.head.env.items() if not k.startswith("RAY_")})
    status, output = poor.submitted("status", "/nowhere")
    assert (status, "wants a token" in output) == (ExitCode.SETTINGS, True), output
    assert "RAY_AUTH_TOKEN" not in os.environ

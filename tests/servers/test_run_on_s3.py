"""A whole run on an S3 server: generate, fine-tune, verify, evaluate and restore, as the same run on a disk."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from gmd_ray import demo, storage
from gmd_ray.cli import main
from gmd_ray.demo.toy.prepare import WorldSize, prepare
from gmd_ray.errors import ExitCode
from gmd_ray.pairstore.store import find_store
from tests.servers.running import S3Server, running_s3

pytestmark = pytest.mark.slow

SIZE = WorldSize(seed=7, target=8, severe=2, source=6, target_test=4, source_test=3)
FOLDERS = {
    "target.path": "target_lq", "source.hq": "source_hq", "source.lq": "source_lq",
    "evaluation.target_lq": "target_test_lq", "evaluation.target_hq": "target_test_hq",
    "evaluation.source_hq": "source_test_hq", "evaluation.source_lq": "source_test_lq",
    "evaluation.pairs_hq": "target_hq",
}  # fmt: skip
SETTINGS = (
    "preset=toy", "prepare=null", "controls=[]", "tracking.gates=[]", "tracking.enabled=false",
    "teacher.steps=1", "teacher.injection.steps=1", "teacher.pool.min=1", "teacher.pool.max=1",
    "scorer.threshold=1", "generation.rows_per_block=4",
    "training.steps=60", "training.batch_size=4", "training.checkpoint_every=3", "training.log_every=3",
    "training.cpus_per_worker=1", "evaluation.metrics=[psnr]", "evaluation.report_images=2",
)  # fmt: skip
STUDENT = Path(next(iter(demo.__path__)), "toy", "weights", "student.safetensors")
ROWS = ["id", "status", "score", "lq", "restored", "pseudo_target", "digest", "teacher", "student", "scorer"]
STOPPED = """
import json, os, signal, sys, threading, time

from gmd_ray.cli import main
from gmd_ray.config import Config
from gmd_ray.ray_utils.session import ray_session
from gmd_ray.storage import is_file

checkpoint, commands = json.loads(sys.argv[1])

def stop():
    while not is_file(checkpoint):
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)

with ray_session(Config()):
    threading.Thread(target=stop, daemon=True).start()
    statuses = []
    for command in commands:
        try:
            statuses.append(main(command))
        except SystemExit as error:
            statuses.append(error.code)
print("statuses", json.dumps(statuses))
"""
"""Runs commands one after another in one Ray session, and sends SIGTERM once there is a checkpoint."""


@dataclass(frozen=True)
class Chain:
    """The inputs and outputs of a run, on a disk or in a bucket."""

    root: str
    """Path or URL that holds `world/`, `student.safetensors`, and everything that is written."""

    def command(self, verb: str, run: str, *words: str) -> list[str]:
        folders = [f"{key}={self.root}/world/{name}" for key, name in FOLDERS.items()]
        return [verb, *SETTINGS, *folders, f"student.path={self.root}/student.safetensors", f"out={self.root}/{run}",
                *words]  # fmt: skip

    def run(self, verb: str, *words: str) -> int:
        """Run a stage in this process, without Ray."""
        return main(self.command(verb, "run", "ray.enabled=false", *words))

    def read(self, name: str) -> bytes:
        data = storage.read_bytes(f"{self.root}/{name}")
        assert data is not None, name
        return data


@pytest.fixture(scope="module")
def environment(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of a machine that has nothing of the run: empty working, home and cache folders."""
    machine = tmp_path_factory.mktemp("machine")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("home", "cwd", "tmp"):
            (machine / name).mkdir()
        values = {**s3_server.environment, "HOME": str(machine / "home"), "TMPDIR": str(machine / "tmp")}
        for name, value in values.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", str(machine / "tmp"))
        patch.chdir(machine / "cwd")
        yield dict(os.environ)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Chain:
    """The run on a disk, generated and fine-tuned."""
    root = tmp_path_factory.mktemp("disk")
    prepare(root / "world", SIZE)
    (root / "student.safetensors").write_bytes(STUDENT.read_bytes())
    chain = Chain(str(root))
    assert [chain.run("generate"), chain.run("finetune")] == [0, 0]
    return chain


@pytest.fixture(scope="module")
def bucket(disk: Chain, s3_server: S3Server) -> Chain:
    """The run in a bucket, with its inputs there too, generated and fine-tuned."""
    chain = Chain(f"{s3_server.make_bucket('chain')}/data")
    for file in [*Path(disk.root, "world").rglob("*.png"), Path(disk.root, "student.safetensors")]:
        storage.write_bytes(f"{chain.root}/{file.relative_to(disk.root).as_posix()}", file.read_bytes())
    assert [chain.run("generate"), chain.run("finetune")] == [0, 0]
    return chain


def below(server: S3Server, folder: str) -> set[str]:
    """The names of the objects below a folder of the bucket; a name that ends in a slash stands for an empty folder."""
    keys = [key.removeprefix(f"data/{folder}/") for key in server.keys("chain") if key.startswith(f"data/{folder}/")]
    return {key for key in keys if key and not key.endswith("/")}


def is_bare(environment: dict[str, str]) -> bool:
    """Tell whether nothing of a run is left on the machine."""
    machine = Path(environment["HOME"]).parent
    copies = [*(machine / "tmp").glob("gmd-copy-*"), *(machine / "tmp").glob("gmd-draft-*")]
    return not copies and not [*(machine / "cwd").iterdir()]


def test_pairs_and_student_are_those_of_a_disk(
    disk: Chain, bucket: Chain, s3_server: S3Server, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = (_pairs(f"{chain.root}/run") for chain in (bucket, disk))
    assert len(ours) == 8
    assert ours == theirs
    student = "run/finetune/adapted/student.safetensors"
    assert bucket.read(student) == disk.read(student)
    assert bucket.read(student) != STUDENT.read_bytes()

    objects = below(s3_server, "run")
    parts = {name for name in objects if name.startswith("pairs/rows/part-")}
    assert objects - parts == {
        "config.yaml", "pairs/settings.json", "pairs/manifest.json", "pairs/runs.json", "pairs/gate_check.json",
        *(f"finetune/adapted/{name}" for name in ("settings.json", "sources.parquet", "finetuned.json")),
        "finetune/adapted/student.safetensors",
    }  # fmt: skip
    assert is_bare(environment)

    assert main(["verify", "--deep", f"{bucket.root}/run"]) == 0
    assert main(["status", f"{bucket.root}/run", "--json"]) == 0
    told = capsys.readouterr().out
    assert "8 rows, 24 images: whole" in told
    assert json.loads(told[told.index("{") :])["finished"] is True

    stamps = _stamps(bucket)
    assert [bucket.run("generate"), bucket.run("finetune")] == [0, 0], "and again, from what is there"
    assert _stamps(bucket) == stamps


def test_settings_of_a_begun_run_are_held_against_those_in_the_bucket(
    bucket: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bucket.run("finetune", "training.lr=0.5") == ExitCode.SETTINGS
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gmd-ray: ")]
    assert f"{bucket.root}/run/finetune/adapted was begun with other settings (training.lr: 0.005 before" in line
    assert main(["config", f"config={bucket.root}/run/config.yaml"]) == 0
    assert f"out: {bucket.root}/run\n" in capsys.readouterr().out


def test_photos_of_a_bucket_are_restored_into_it(
    disk: Chain, bucket: Chain, s3_server: S3Server, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    student = "run/finetune/adapted/student.safetensors"
    for chain in (disk, bucket):
        words = ["-i", f"{chain.root}/world/target_test_lq", "-o", f"{chain.root}/restored"]
        assert main(["restore", *words, "-m", f"{chain.root}/{student}", "student.device=cpu"]) == 0
    names = sorted(name for name in below(s3_server, "restored") if name.endswith(".png"))
    assert names == [f"{i:05d}.png" for i in range(4)]
    assert [bucket.read(f"restored/{name}") for name in names] == [disk.read(f"restored/{name}") for name in names]
    assert is_bare(environment)

    capsys.readouterr()
    assert main(["restore", *words, "-m", f"{bucket.root}/{student}", "student.device=cpu"]) == 0
    assert "4 of 4 images restored" in (told := capsys.readouterr().out)
    assert "4 of them by an earlier run" in told

    assert main(["restore", *words, "-m", f"{bucket.root}/absent.pth"]) == ExitCode.SETTINGS
    assert f"{bucket.root}/absent.pth: no such file or folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server with the bucket `guarded`, which refuses the tests' key."""
    with running_s3(tmp_path_factory.mktemp("guarded") / "s3.log", requests=1) as server:
        server.make_bucket("guarded")
        yield server


@pytest.mark.parametrize("verb", ["generate", "finetune", "evaluate"])
@pytest.mark.parametrize("fault", ["NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID"])
def test_a_bucket_that_cannot_be_written_is_refused_at_once(
    verb: str,
    fault: str,
    disk: Chain,
    guarded: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = "s3://not-there/run"
    if fault == "INVALID_ACCESS_KEY_ID":
        out = "s3://guarded/run"
        monkeypatch.setenv("AWS_ENDPOINT_URL", guarded.url)
    monkeypatch.delattr("ray.init")  # nothing may need it
    command = [word for word in disk.command(verb, "run") if not word.startswith("out=")]
    if verb != "evaluate":
        command.append("ray.enabled=false")
    assert main([*command, f"out={out}"]) == ExitCode.SETTINGS
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"gmd-ray: out={out}")]
    assert "cannot be written" in line
    assert fault in line


def test_what_needs_a_disk_says_so(
    bucket: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for words, said in (
        (bucket.command("finetune", "run", "tracking.enabled=true"), "MLflow cannot keep its database there"),
        (bucket.command("finetune", "run", "prepare=toy"), "prepare=toy draws images into a local folder"),
        (["ablate", "table5", *bucket.command("ablate", "run")[1:]], "ablate needs a local folder"),
        (["serve", f"{bucket.root}/run"], "shows a run directory of this machine"),
        (
            ["sheet", f"{bucket.root}/run", "--to", "s3://not-there/a.html"],
            "--to s3://not-there/a.html: cannot be written",
        ),
    ):
        assert main(words) == ExitCode.SETTINGS
        assert said in capsys.readouterr().err


def test_a_student_from_scratch_begins_in_the_bucket(bucket: Chain, s3_server: S3Server) -> None:
    network = "pretrain.arguments={in_nc: 3, out_nc: 3, nc: 8, nb: 9, act_mode: R}"
    command = bucket.command("pretrain", "scratch", "ray.enabled=false", "pretrain.architecture=DnCNN", network)
    command = [*(word for word in command if not word.startswith("student.path")), "pretrain.steps=2"]
    assert [main(command), main(command)] == [0, 0]
    names = {"initial.json", "initial.pth", "student.pth", "settings.json", "sources.parquet", "finetuned.json"}
    assert below(s3_server, "scratch/finetune/pretrained") == names


def test_a_stopped_fine_tune_goes_on_from_its_checkpoint_in_the_bucket(
    own_ray: None, disk: Chain, bucket: Chain, s3_server: S3Server, environment: dict[str, str]
) -> None:
    """On Ray: SIGTERM after the first checkpoint, the same command again, and the evaluation of the result."""
    for name in [name for name in below(s3_server, "run") if name.startswith(("pairs/", "config.yaml"))]:
        storage.write_bytes(f"{bucket.root}/ray/{name}", bucket.read(f"run/{name}"))
    finetune = bucket.command("finetune", "ray")
    commands = [finetune, finetune, bucket.command("evaluate", "ray"), disk.command("evaluate", "run")]
    train = f"{bucket.root}/ray/finetune/adapted/train"
    with tempfile.TemporaryDirectory(prefix="gmd-", dir="/tmp") as folder:  # Ray's sockets have short paths
        done = subprocess.run(
            [sys.executable, "-c", STOPPED, json.dumps([f"{train}/step_00000003/state.pt", commands])],
            env={**environment, "RAY_TMPDIR": folder}, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"statuses [{ExitCode.INTERRUPTED:d}, 0, 0, 0]", done.stderr[-3000:]

    result = json.loads(bucket.read("ray/finetune/adapted/finetuned.json"))
    assert 0 < result["resumed_from"] < 60
    student = "finetune/adapted/student.safetensors"
    assert bucket.read(f"ray/{student}") == disk.read(f"run/{student}"), "as in one process, without a stop"
    curve = [json.loads(line) for line in bucket.read("ray/finetune/adapted/curve.jsonl").splitlines()]
    assert [point["step"] for point in curve] == [*range(3, 61, 3)], "each step once"

    objects = below(s3_server, "ray")
    assert {"finetune/adapted/train/checkpoint_manager_snapshot.json", "report.html"} <= objects
    assert "finetune/adapted/train/step_00000060/state.pt" in objects
    assert {f"evaluation/{name}" for name in ("table.md", "table.tex", "summary.json", "pictures.parquet")} <= objects
    ours, theirs = (
        pq.read_table(io.BytesIO(chain.read(f"{run}/evaluation/metrics.parquet"))).to_pylist()
        for chain, run in ((bucket, "ray"), (disk, "run"))
    )
    assert ours == theirs
    assert {(row["dataset"], row["student"]) for row in ours} >= {("target", "adapted"), ("source", "baseline")}
    assert is_bare(environment)
    report = bucket.read("ray/report.html")
    assert main(["evaluate", "--from-metrics", f"{bucket.root}/ray"]) == 0
    assert len(bucket.read("ray/report.html")) == pytest.approx(len(report), rel=0.01)


def _pairs(run: str) -> list[dict[str, object]]:
    from gmd_ray.pairstore.schema import rows_dataset

    store = find_store(run)
    return list(rows_dataset(store.path, store.filesystem).to_table(columns=ROWS).sort_by("id").to_pylist())


def _stamps(chain: Chain) -> dict[str, object]:
    """The time of each part file and of the student."""
    store = find_store(f"{chain.root}/run")
    parts = [info.path for info in store.filesystem.get_file_info(fs.FileSelector(store.rows_path))]
    student = f"{store.path.rpartition('/')[0]}/finetune/adapted/student.safetensors"
    return {info.path: info.mtime for info in store.filesystem.get_file_info([*parts, student])}

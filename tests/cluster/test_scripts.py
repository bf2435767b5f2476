"""The scripts of `cluster/`, run for real with stand-ins for Slurm, Ray and the driver, and read by shellcheck."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY

from gmd_ray.weights.copies import CACHE
from tests import PATIENCE_S
from tests.cluster.tools import CLUSTER, KUBERAY, ROOT, check, load

SLURM = CLUSTER / "slurm"
RECORD = 'echo "${0##*/} $*" >>"$CALLS"\n'
"""First line of a stand-in: notes its name and arguments."""
DRIVER = """
trap 'echo "gmd-ray got TERM" >>"$CALLS"; kill %1; exit 5' TERM
sleep "$DRIVER_S" & wait %1
exit "${DRIVER_STATUS:-0}"
"""
"""A driver that works for DRIVER_S seconds; told to stop, it ends with 5."""


class Stage:
    """A folder of stand-ins that come first on the PATH, and the calls that they have noted."""

    def __init__(self, folder: Path, programs: dict[str, str], **environment: str) -> None:
        self.calls_file = folder / "calls"
        self.calls_file.touch()
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        for name, body in programs.items():
            (bin_folder / name).write_text(f"#!/bin/bash\n{RECORD}{body}\n", encoding="utf-8")
            (bin_folder / name).chmod(0o755)
        path = f"{bin_folder}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "CALLS": str(self.calls_file), **environment}

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        )

    def calls(self) -> list[str]:
        return self.calls_file.read_text(encoding="utf-8").splitlines()

    def wait_for(self, word: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while not any(word in call for call in self.calls()):
            assert time.monotonic() < until, self.calls()
            time.sleep(0.05)


def allocation(folder: Path, nodes: int, driver_s: float, **more: str) -> Stage:
    programs = {"ray": "", "srun": 'exec "${@: -8}"', "scontrol": "", "gmd-ray": DRIVER}
    return Stage(
        folder,
        programs,
        SLURM_JOB_ID="4711",
        SLURM_JOB_NUM_NODES=str(nodes),
        SLURM_CPUS_PER_TASK="32",
        SLURM_GPUS_ON_NODE="4",
        SLURM_SUBMIT_DIR=str(ROOT),
        DRIVER_S=str(driver_s),
        **more,
    )


def test_a_run_gets_a_head_workers_with_labels_and_the_address(tmp_path: Path) -> None:
    stage = allocation(tmp_path, nodes=4, driver_s=0)
    run = stage.start("bash", str(SLURM / "ray.sbatch"), "adapt", "preset=deblur_reds", "out=/shared/run")
    assert run.wait(PATIENCE_S) == 0
    stage.wait_for("--block")  # srun is in the background, and this driver ends at once
    calls = stage.calls()
    [head] = [call for call in calls if call.startswith("ray start --head")]
    [worker] = [call for call in calls if call.startswith("srun")]
    [driver] = [call for call in calls if call.startswith("gmd-ray")]
    assert "ray get-auth-token --generate" in calls
    address = worker.split("--address=")[1].split()[0]
    assert f"--port={address.rpartition(':')[2]}" in head
    assert driver == (
        f"gmd-ray adapt config={SLURM}/settings.yaml ray.address={address} preset=deblur_reds out=/shared/run"
    )
    assert "--nodes=3 --ntasks=3 " in worker
    assert " --cpus-per-task=32 " in worker.split(" ray start ")[0]  # since Slurm 22.05 srun does not inherit it
    settings = load("slurm/settings.yaml")
    assert f"--labels=pool={settings['student']['pool']['labels']['pool']} " in head
    assert f"--labels=pool={settings['teacher']['pool']['labels']['pool']} " in worker
    assert all(" --num-cpus=32 --num-gpus=4" in call for call in (head, worker))
    assert "ray stop --grace-period 30" in calls
    assert not [call for call in calls if call.startswith("scontrol")]


@pytest.mark.parametrize(
    ("given", "cache"),
    [
        ({}, ""),
        ({"SLURM_TMPDIR": "/local/4711"}, "/local/4711/gmd_ray"),
        ({"SLURM_TMPDIR": "/local/4711", CACHE: "/nvme"}, "/nvme"),
    ],
)
def test_weights_go_to_the_node_s_own_disk(tmp_path: Path, given: dict[str, str], cache: str) -> None:
    environment = {CACHE: "", "SLURM_TMPDIR": "", **given}
    stage = allocation(tmp_path, nodes=1, driver_s=0, **environment)
    script = f'source "{SLURM}/cluster.sh"; echo "[${CACHE}]"'
    run = stage.start("bash", "-c", script)
    assert run.communicate(timeout=PATIENCE_S)[0].strip() == f"[{cache}]"


def test_one_node_needs_no_srun_and_no_labels(tmp_path: Path) -> None:
    stage = allocation(tmp_path, nodes=1, driver_s=0)
    assert stage.start("bash", str(SLURM / "ray.sbatch"), "generate", "out=/shared/run").wait(PATIENCE_S) == 0
    assert not [call for call in stage.calls() if call.startswith("srun")]
    assert any(f"config={SLURM}/one-node.yaml" in call for call in stage.calls())
    assert "labels" not in str(load("slurm/one-node.yaml"))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_near_its_time_limit_a_run_stops_and_goes_back_into_the_queue(tmp_path: Path, number: signal.Signals) -> None:
    stage = allocation(tmp_path, nodes=2, driver_s=60)
    run = stage.start("bash", str(SLURM / "ray.sbatch"), "adapt", "out=/shared/run")
    stage.wait_for("gmd-ray adapt")
    time.sleep(0.3)  # until the stand-in has its trap
    run.send_signal(number)
    assert run.wait(PATIENCE_S) == 5
    calls = stage.calls()
    order = ["gmd-ray got TERM", "scontrol requeue 4711", "ray stop --grace-period 30"]
    assert [call for call in calls if call in order] == order


def test_a_run_that_fails_does_not_go_back(tmp_path: Path) -> None:
    stage = allocation(tmp_path, nodes=1, driver_s=0, DRIVER_STATUS="2")
    assert stage.start("bash", str(SLURM / "ray.sbatch"), "adapt", "out=/shared/run").wait(PATIENCE_S) == 2
    assert not [call for call in stage.calls() if call.startswith("scontrol")]


@pytest.mark.parametrize(("restarts", "again"), [("", True), ("9", True), ("10", False)])
def test_a_run_that_the_cluster_broke_off_goes_back_a_few_times(tmp_path: Path, restarts: str, again: bool) -> None:
    stage = allocation(tmp_path, nodes=1, driver_s=0, DRIVER_STATUS="5", SLURM_RESTART_COUNT=restarts)
    assert stage.start("bash", str(SLURM / "ray.sbatch"), "adapt", "out=/shared/run").wait(PATIENCE_S) == 5
    assert ("scontrol requeue 4711" in stage.calls()) == again


@pytest.mark.parametrize("end", ["", "\n"])
def test_the_array_has_a_task_for_every_line(tmp_path: Path, end: str) -> None:
    """The script takes a last line without an end, so it is counted."""
    (tmp_path / "runs.txt").write_text(f"out=/shared/a\nout=/shared/b{end}", encoding="utf-8")
    for file in (SLURM / "array.sbatch", CLUSTER / "README.md"):
        [command] = re.findall(r"--array=1-\"\$\((.*?)\)\"", file.read_text(encoding="utf-8"))
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=True)
        assert done.stdout.strip() == "2", file


@pytest.mark.parametrize(("task", "given"), [("1", "out=/shared/a seed=0"), ("2", "out=/shared/b seed=1"), ("3", None)])
def test_a_task_of_an_array_takes_its_line(tmp_path: Path, task: str, given: str | None) -> None:
    stage = allocation(tmp_path, nodes=1, driver_s=0, SLURM_ARRAY_TASK_ID=task)
    (tmp_path / "runs.txt").write_text("out=/shared/a seed=0\nout=/shared/b seed=1\n", encoding="utf-8")
    run = stage.start("bash", str(SLURM / "array.sbatch"), str(tmp_path / "runs.txt"), "adapt", "preset=demo")
    assert run.wait(PATIENCE_S) == (2 if given is None else 0)
    wanted = [] if given is None else [f"gmd-ray adapt preset=demo config={SLURM}/one-node.yaml {given}"]
    assert stage.calls() == wanted


def test_the_signal_comes_before_the_limit_and_the_job_may_be_requeued() -> None:
    for script in SLURM.glob("*.sbatch"):
        text = script.read_text(encoding="utf-8")
        assert "#SBATCH --signal=B:USR1@180" in text  # generation.grace_s is 60
        assert "#SBATCH --requeue" in text
        assert "#SBATCH --open-mode=append" in text


def test_the_scripts_are_clean() -> None:
    check("shellcheck", "--external-sources", *sorted(SLURM.glob("*.sh")), *sorted(SLURM.glob("*.sbatch")))


def drain(folder: Path, seconds: int, ps: str, ray: str = "", copy: int = 8) -> tuple[Stage, subprocess.Popen[str]]:
    if shutil.which("timeout") is None:
        pytest.skip("no timeout here; coreutils bring it")
    stage = Stage(folder, {"ps": ps, "ray": ray}, RAY_ADDRESS="head:6379")
    return stage, stage.start("sh", str(KUBERAY / "base" / "drain.sh"), str(seconds), str(copy))


IDLE = (
    "printf '%s\\n' COMMAND ray::IDLE ray::DashboardAgent ray::RuntimeEnvAgent "
    "'/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/s --node_id=c0ffee --session-name=s'"
)
"""The processes of a node without work."""


def test_a_node_without_work_goes_at_once(tmp_path: Path) -> None:
    begun = time.monotonic()
    stage, run = drain(tmp_path, 60, IDLE)
    assert run.wait(PATIENCE_S) == 0
    assert time.monotonic() - begun < 10
    [told] = [call for call in stage.calls() if call.startswith("ray")]
    assert told == (
        "ray drain-node --address head:6379 --node-id c0ffee --reason DRAIN_NODE_REASON_PREEMPTION "
        "--reason-message preStop --deadline-remaining-seconds 60"
    )


@pytest.mark.parametrize(("seconds", "least", "most"), [(60, 2.0, 15.0), (4, 0.0, 4.0)])
def test_a_node_goes_when_its_work_is_done_and_fetched(tmp_path: Path, seconds: int, least: float, most: float) -> None:
    """Blocks that were left in the object store of the node are fetched within 3 s here, or until the deadline."""
    busy = f'[ -e {tmp_path}/done ] || echo "ray::MapWorker(Project)"\n{IDLE}'
    stage, run = drain(tmp_path, seconds, busy, copy=3)
    stage.wait_for("ps ")
    time.sleep(1.5)
    assert run.poll() is None
    (tmp_path / "done").touch()
    done = time.monotonic()
    assert run.wait(PATIENCE_S) == 0
    assert least <= time.monotonic() - done < most + 5


def test_the_deadline_ends_the_wait_even_without_a_head(tmp_path: Path) -> None:
    begun = time.monotonic()
    _, run = drain(tmp_path, 2, 'echo "ray::MapWorker(Project)"', ray="exit 1")
    assert run.wait(PATIENCE_S) == 0
    assert 1 < time.monotonic() - begun < 15


@pytest.mark.parametrize("status", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("answers", [True, False])
def test_a_rayjob_stops_itself_where_again_is_no_use(tmp_path: Path, status: int, answers: bool) -> None:
    """KubeRay tries a job again that FAILED; where the script cannot have it stopped, it fails as it did."""
    job = json.dumps({"metadata": {JOB_ID_METADATA_KEY: "gmd-adapt-x7"}})
    programs = {"ray": "" if answers else "exit 1", "gmd-ray": f"exit {status}"}
    given = {RAY_JOB_CONFIG_JSON_ENV_VAR: job, "RUN_STOP_S": "0", "PYTHONPATH": ""}
    stage = Stage(tmp_path, programs, **given)
    run = stage.start("sh", str(KUBERAY / "base" / "run.sh"), "adapt", "preset=deblur_reds", "out=/shared/a b")
    log = run.communicate(timeout=PATIENCE_S)[0]
    assert run.returncode == status
    driver, *more = stage.calls()
    assert driver == "gmd-ray adapt preset=deblur_reds out=/shared/a b"
    over = status in (2, 3, 4)
    assert more == (["ray job stop --no-wait --address http://127.0.0.1:8265 gmd-adapt-x7"] if over else [])
    assert (f"ended with status {status}" in log) == over


def test_a_rayjob_that_is_stopped_waits_for_it(tmp_path: Path) -> None:
    """If it ended before Ray has stopped it, it would be FAILED, and tried again."""
    job = json.dumps({"metadata": {JOB_ID_METADATA_KEY: "gmd-adapt-x7"}})
    stage = Stage(tmp_path, {"ray": "", "gmd-ray": "exit 4"}, **{RAY_JOB_CONFIG_JSON_ENV_VAR: job, "RUN_STOP_S": "20"})
    run = stage.start("sh", str(KUBERAY / "base" / "run.sh"), "adapt")
    stage.wait_for("ray job stop")
    time.sleep(0.5)
    assert run.poll() is None
    for process in [*psutil.Process(run.pid).children(), run]:  # as Ray does
        process.terminate()
    assert run.wait(PATIENCE_S) != 0

"""MLflow: one parent run for a sweep, with a child for each store and each cell."""

from __future__ import annotations

import mlflow
import pytest

from gmd_ray.cli import main
from tests.ablation.conftest import SweepWorld
from tests.ablation.test_cells import sweep_of


def test_a_sweep_is_one_parent_with_a_child_for_each_cell(
    sweep_world: SweepWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_of(sweep_world.root, "{name: unadapted, student: baseline}", "{name: gate}")
    args = [*sweep_world.args, "tracking.enabled=true", "--seeds", "2"]
    again = sweep_world.root / "again.yaml"
    again.write_text("rows: [{name: the same under another name}]")
    assert main(["ablate", str(sweep_world.root / "sweep.yaml"), *args]) == 0
    assert main(["ablate", str(sweep_world.root / "sweep.yaml"), *args]) == 0, "a second call goes on with the same run"
    assert main(["ablate", str(again), *args]) == 0, "another table of the same cells"
    client = mlflow.MlflowClient(f"sqlite:///{sweep_world.out}/mlflow.db")
    [experiment] = client.search_experiments(filter_string="name = 'gmd_ray'")
    runs = client.search_runs([experiment.experiment_id])
    parents = {run.info.run_name: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert set(parents) == {"sweep", "again"}
    assert parents["sweep"].info.status == "FINISHED"
    of = {
        name: [run for run in runs if run.data.tags.get("mlflow.parentRunId") == p.info.run_id]
        for name, p in parents.items()
    }
    assert {run.info.run_name for run in of["again"]} >= {f"the same under another name, seed {n}" for n in (0, 1)}
    assert all("target/psnr" in run.data.metrics for run in of["again"])
    children = {run.info.run_name: run for run in of["sweep"]}
    cells = {name for name in children if not name.startswith("generate-")}
    assert cells == {"unadapted", "gate, seed 0", "gate, seed 1"}
    assert len(children) == 4
    assert "target/psnr" in children["gate, seed 1"].data.metrics

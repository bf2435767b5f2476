"""A sweep on a Ray cluster: the stages of a cell are those of a run."""

from __future__ import annotations

import pytest

from gmd_ray.ablation.cells import make_cells
from gmd_ray.ablation.figures import collect_figures
from gmd_ray.ablation.run import run_sweep
from tests.ablation.conftest import SweepWorld
from tests.ablation.test_cells import sweep_of


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_on_ray_has_the_figures_of_one_in_this_process(sweep_world: SweepWorld) -> None:
    sweep = sweep_of(sweep_world.root, "{name: gate, set: {training.source_ratio: 0.5}}")
    found = []
    for name in ("here", "ray"):
        out = str(sweep_world.root / name)
        args = [*sweep_world.args, f"ray.enabled={'true' if name == 'ray' else 'false'}"]
        cells = make_cells(sweep, args, out, [0])
        run_sweep(sweep, cells)
        found.append(collect_figures(sweep, cells).rows[0].values("target", "psnr"))
    here, on_ray = found
    assert len(here[0]) == 7
    assert here[0] == pytest.approx(on_ray[0], abs=1e-3)

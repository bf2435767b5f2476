"""Sweeps: rows of settings x training seeds over one base run, which share Stages 0 to 1b wherever settings allow."""

from gmd_ray.ablation.run import run_sweep
from gmd_ray.ablation.sweep import Ablation, load_sweep, sweep_names

__all__ = ["Ablation", "load_sweep", "run_sweep", "sweep_names"]

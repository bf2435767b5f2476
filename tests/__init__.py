"""The tests of gmd_ray, and a bound that all of them share."""

PATIENCE_S = 300
"""Seconds that a test waits for what takes a second on an idle machine: a guard against hangs, no measure of speed."""

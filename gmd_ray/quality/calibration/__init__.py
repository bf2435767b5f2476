"""Calibration of the gate: scores of photos whose order is known, and the threshold that parts them."""

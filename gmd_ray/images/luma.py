"""Weights of red, green and blue in the three kinds of gray that the restoration literature uses."""

from __future__ import annotations

BT601 = (0.299, 0.587, 0.114)
"""Full-range BT.601 luma. Gray denoisers (DnCNN, SwinIR, ...) are trained and tested on it."""

BT601_STUDIO = (65.481, 128.553, 24.966)
"""Y of BT.601 YCbCr for RGB in [0, 1]: the weighted sum plus 16 lies in 16..235, as in MATLAB's rgb2ycbcr."""

TORCHVISION = (0.2989, 0.587, 0.114)
"""The weights of torchvision's `rgb_to_grayscale`, which Real-ESRGAN's gray noise uses."""

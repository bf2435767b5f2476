"""Choice of the device that a model runs on."""

from __future__ import annotations

import torch

from gmd_ray.errors import ConfigError


def choose_device(name: str, setting: str) -> torch.device:
    """The device of that name; `auto` is the first CUDA device, or the CPU on a machine without one.

    Args:
        name: auto, cpu, cuda or cuda:N.
        setting: the setting that holds the name, such as `teacher.device`, for the message.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{setting}={name}: no such device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"{setting}={name}: {torch.cuda.device_count()} CUDA devices are visible here; use auto or cpu"
        )
    return device

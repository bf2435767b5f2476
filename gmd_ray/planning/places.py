"""The places that a run writes to."""

from __future__ import annotations

import os

from gmd_ray.config import Config
from gmd_ray.destinations import why_unwritable
from gmd_ray.planning.findings import Findings

_SQLITE = "sqlite:///"
_KEPT = ("pairs", "pairs/rows", "finetune", "evaluation", "prompts", "mlartifacts")
"""Folders of a run directory that an earlier run, of somebody else perhaps, may have made."""
_FILES = ("config.yaml", "mlflow.db", "report.html", "pairs/settings.json", "pairs/manifest.json")


def check_places(found: Findings, cfg: Config) -> None:
    """The run directory, what an earlier run left in it, and a tracking database that is a file.

    What lies behind a URL tells it with the first write.
    """
    if "://" not in cfg.out:
        if why := why_unwritable(cfg.out, folder=True):
            found.error("place", "out", f"out={cfg.out}: cannot be written ({why})")
        else:
            for name in (*_KEPT, *_FILES):
                path = os.path.join(cfg.out, name)
                if os.path.lexists(path) and (why := why_unwritable(path, folder=name in _KEPT)):
                    found.error("place", "out", f"{path}: cannot be written ({why}); mend that, or give another out")
    uri = cfg.tracking.uri
    if cfg.tracking.enabled and uri and uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE).partition("?")[0]
        if path and not path.startswith(":memory:") and (why := why_unwritable(path, folder=False)):
            found.error("place", "tracking.uri", f"tracking.uri={uri}: cannot be written ({why})")

"""A process that promotes one version, started twice by `test_server.py`: `rival.py URI MODEL VERSION GO`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from gmd_ray.config import Config
from gmd_ray.tracking import champions, promote_version


def main(uri: str, model: str, version: str, go: str) -> None:
    """Judge, say so, wait until the other one has judged as well, and go on."""
    cfg = Config()
    cfg.tracking.uri, cfg.tracking.model = uri, model
    judge, waits = champions.judge_promotion, [True]

    def slow(*args: object) -> object:
        verdicts = judge(*args)  # type: ignore[arg-type]
        if waits:
            waits.clear()
            print("judged", flush=True)
            while not Path(go).exists():
                time.sleep(0.01)
        return verdicts

    champions.judge_promotion = slow  # type: ignore[assignment]
    decision = promote_version(cfg, f"models:/{model}/{version}", f"rival {version}")
    print("promoted" if decision.promoted else "refused", *decision.reasons, sep="\n", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

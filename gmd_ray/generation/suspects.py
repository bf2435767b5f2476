"""Evidence of a run that ended early against images that end or hang their workers, kept for the next run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from gmd_ray.config import Config
from gmd_ray.errors import GmdError
from gmd_ray.generation.attempts.log import Attempts, Evidence
from gmd_ray.images.listing import ImageFile
from gmd_ray.pairstore import run_settings
from gmd_ray.pairstore.store import PairStore
from gmd_ray.text import one_line, some

log = logging.getLogger("gmd_ray.generation")

SUSPECTS_FILE = "suspects.json"


def circumstances(cfg: Config) -> str:
    """Return a digest of the models, devices and pools of a run. With others, every image is tried anew."""
    models = {section: asdict(getattr(cfg, section)) for section in run_settings.MODELS}
    del models["teacher"]["prompt_embeddings"]  # each run finds or makes them
    return run_settings.fingerprint({**models, "places": run_settings.places(cfg)})


@dataclass(frozen=True)
class Notebook:
    """The store's `suspects.json`: written by the attempt log while a run goes on, removed when a run ends in order."""

    url: str
    """URL of the pair store."""
    settings: str
    """Digest of the run's settings (`circumstances`)."""
    patience_s: float
    """Seconds that a batch may take in this run before it counts as hung."""

    def save(self, known: Evidence) -> None:
        """Replace the file. If storage fails, the next run has no evidence, and this one goes on."""
        rows = [
            {"stage": stage, "id": key, "times": attempts.times, "alone": attempts.alone, "hung": attempts.hung}
            for (stage, key), attempts in sorted(known.items())
        ]
        try:
            PairStore(self.url).write(
                SUSPECTS_FILE,
                {"settings": self.settings, "patience_s": self.patience_s, "at": time.time(), "rows": rows},
            )
        except OSError as error:
            log.warning("%s/%s: not written: %s", self.url, SUSPECTS_FILE, one_line(error))

    def load(self, files: Iterable[ImageFile]) -> Evidence:
        """Return the evidence of earlier runs against these images.

        Images that have changed since are left out, and so are hangs within less time than this run allows.
        """
        store = PairStore(self.url)
        found: Evidence = {}
        try:
            told = store.read(SUSPECTS_FILE)
            if told is None or told["settings"] != self.settings:
                return {}
            modified = {file.id: file.modified for file in files}
            for row in told["rows"]:
                changed = modified.get(row["id"])
                if row["id"] not in modified or (changed is not None and changed.timestamp() > told["at"]):
                    continue
                attempts = Attempts(row["times"], row["alone"], 0, row["hung"])
                if self.patience_s > told["patience_s"]:
                    times = attempts.times - attempts.hung
                    attempts = replace(attempts, times=times, alone=min(attempts.alone, times), hung=0)
                if attempts.times > 0:
                    found[row["stage"], row["id"]] = attempts
        except (GmdError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "%s/%s: cannot be used (%s); no image is under suspicion", self.url, SUSPECTS_FILE, one_line(error)
            )
            return {}
        if found:
            named = some(sorted({f"{stage} on {key}" for stage, key in found}))
            log.info("an earlier run ended in what may hang or kill a worker (%s)", named)
        return found

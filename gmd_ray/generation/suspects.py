"""What a run that ended early knew of images that end or hang their workers, for the next run on its store."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from gmd_ray.config import Config
from gmd_ray.errors import GmdError
from gmd_ray.generation.ledger import Begun, Evidence
from gmd_ray.images.listing import ImageFile
from gmd_ray.pairstore import run_settings
from gmd_ray.pairstore.store import PairStore
from gmd_ray.text import one_line

log = logging.getLogger("gmd_ray.generation")

SUSPECTS_FILE = "suspects.json"


def circumstances(cfg: Config) -> str:
    """A digest of all that an image may hang by but itself: other models, devices or pools are a new trial."""
    models = {section: asdict(getattr(cfg, section)) for section in run_settings.MODELS}
    del models["teacher"]["prompt_embeddings"]  # found or made by each run
    return run_settings.fingerprint({**models, "places": run_settings.places(cfg)})


@dataclass(frozen=True)
class Notebook:
    """The store's `suspects.json`: written by the ledger while a run goes on, removed when one ends in order."""

    url: str
    """Of the pair store."""
    settings: str
    """`circumstances` of the run."""
    patience_s: float
    """How long a batch may take in this run before it counts as hung."""

    def save(self, known: Evidence) -> None:
        """Replace what is there. Storage that fails costs the next run its knowledge, never this run."""
        rows = [
            {"stage": stage, "id": key, "times": begun.times, "alone": begun.alone, "hung": begun.hung}
            for (stage, key), begun in sorted(known.items())
        ]
        try:
            PairStore(self.url).write(
                SUSPECTS_FILE,
                {"settings": self.settings, "patience_s": self.patience_s, "at": time.time(), "rows": rows},
            )
        except OSError as error:
            log.warning("%s/%s: not written: %s", self.url, SUSPECTS_FILE, one_line(error))

    def load(self, files: Iterable[ImageFile]) -> Evidence:
        """What earlier runs left of these images.

        Not of an image that has changed since, nor a hang within less time than this run allows.
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
                begun = Begun(row["times"], row["alone"], 0, row["hung"])
                if self.patience_s > told["patience_s"]:
                    times = begun.times - begun.hung
                    begun = replace(begun, times=times, alone=min(begun.alone, times), hung=0)
                if begun.times > 0:
                    found[row["stage"], row["id"]] = begun
        except (GmdError, KeyError, TypeError, AttributeError) as error:
            log.warning(
                "%s/%s: cannot be used (%s); no image is under suspicion", self.url, SUSPECTS_FILE, one_line(error)
            )
            return {}
        if found:
            some = ", ".join(sorted({f"{stage} on {key}" for stage, key in found})[:3])
            log.info("an earlier run ended in what may hang or kill a worker (%s%s)", some, ", ..." * (len(found) > 3))
        return found

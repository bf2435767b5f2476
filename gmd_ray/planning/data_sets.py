"""The data sets of a run with the header of every file, read once for all of the checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gmd_ray.config import Config
from gmd_ray.images.headers import ImageHeader, read_headers, settle_doubts
from gmd_ray.images.listing import ImageFile
from gmd_ray.images.sets.inventory import data_sets
from gmd_ray.images.sets.listed import SOURCE, SOURCE_TEST, TARGET, TARGET_TEST, TRUTH, Listed
from gmd_ray.images.sets.run_inputs import RunInputs
from gmd_ray.planning.findings import Findings

_READ_BY = {
    "generate": (TARGET,),
    "finetune": (SOURCE, TRUTH),
    "pretrain": (SOURCE,),
    "evaluate": (TARGET_TEST, SOURCE_TEST),
}
"""Stage -> the sets whose images it decodes."""


@dataclass(frozen=True)
class Side:
    """One folder of images as a set takes them: the photos, or one half of the pairs."""

    key: str
    """The setting that names the folder."""
    place: str
    files: tuple[ImageFile, ...]
    headers: tuple[ImageHeader, ...]


@dataclass(frozen=True)
class DataSet:
    """One data set with the headers of its files."""

    listed: Listed
    lq: Side | None
    """The low-quality side; None if it is made from `hq` on the fly."""
    hq: Side | None
    """The clean side; None if there is none."""

    @property
    def sides(self) -> list[Side]:
        return [side for side in (self.hq, self.lq) if side is not None]


def read_data_sets(
    found: Findings, cfg: Config, stages: Sequence[str], inputs: RunInputs | None = None
) -> dict[str, DataSet]:
    """List every set of the settings that these stages read, and read the headers of its files.

    A set that cannot be listed becomes an error; the other sets are still read.
    """
    sets: dict[str, DataSet] = {}
    wanted = {role for stage in stages for role in _READ_BY[stage]}
    if cfg.training.validate_every and not wanted.isdisjoint((SOURCE, TRUTH)):
        wanted.add(SOURCE_TEST)
    with found.errors_of("data", "source.degradation"):
        for role, listing in data_sets(cfg, inputs).items():
            if role not in wanted and not (role == "truth for the report" and "evaluate" in stages):
                continue
            with found.errors_of("data", _KEYS.get(role, ("", ""))[0]):
                listed = listing()
                found.sets.append(listed)
                found.fact("data", "", str(listed))
                if role in wanted:
                    sets[role] = _read_headers(cfg, listed)
    return sets


_KEYS = {
    SOURCE: ("source.hq", "source.lq"),
    SOURCE_TEST: ("evaluation.source_hq", "evaluation.source_lq"),
    TARGET_TEST: ("evaluation.target_hq", "evaluation.target_lq"),
    TRUTH: ("training.supervised_hq", "target.path"),
    TARGET: ("", "target.path"),
}
"""Role -> settings that name the clean and the low-quality side."""


def _read_headers(cfg: Config, listed: Listed) -> DataSet:
    hq_key, lq_key = _KEYS[listed.role]
    if listed.photos:
        limit = cfg.target.max_pixels if listed.role == TARGET else None
        return DataSet(listed, _side(lq_key, str(listed.lq), listed.photos, limit), None)
    clean = tuple(_file(pair.id, pair.hq) for pair in listed.pairs)
    degraded = tuple(_file(pair.id, pair.lq) for pair in listed.pairs if pair.lq is not None)
    lq = _side(lq_key, str(listed.lq), degraded) if degraded else None
    return DataSet(listed, lq, _side(hq_key, str(listed.hq), clean))


def _file(key: str, uri: str) -> ImageFile:
    return ImageFile(key, uri)


def _side(key: str, place: str, files: tuple[ImageFile, ...], max_pixels: int | None = None) -> Side:
    headers = settle_doubts(files, read_headers(files, max_pixels), max_pixels)
    return Side(key, place, files, tuple(headers))

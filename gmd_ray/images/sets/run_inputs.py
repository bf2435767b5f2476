"""The image folders of one run, listed when first asked for and then handed from stage to stage."""

from __future__ import annotations

from collections.abc import Sequence

from gmd_ray.images.listing import ImageFile, Listing, list_folder
from gmd_ray.images.sets.listed import Listed
from gmd_ray.images.sets.pairs import PairFile, list_by_stem, list_pairs, list_truths


class RunInputs:
    """Listings of image folders, each made once.

    Walking a folder of a million photos takes minutes on a network file system, and the preflight, each fine-tune and
    the evaluation of one run read the same few folders. They share one object of this class; a stage that is called by
    itself makes its own. A listing that fails is not kept: the next call tries again.
    """

    def __init__(self) -> None:
        self.sets: list[Listed] = []
        """The data sets that the preflight went through, with their counts."""
        self._folders: dict[tuple[str, int | None], Listing] = {}
        self._pairs: dict[tuple[str, str | None, str], list[PairFile]] = {}
        self._truths: dict[str, dict[str, ImageFile]] = {}

    def folder(self, url: str, limit: int | None = None) -> Listing:
        """The listing of a folder; arguments and errors are those of `list_folder`."""
        if (url, limit) not in self._folders:
            self._folders[url, limit] = list_folder(url, limit)
        return self._folders[url, limit]

    def images(self, url: str, limit: int | None = None) -> list[ImageFile]:
        """The images of a folder, sorted by id; arguments and errors are those of `list_images`."""
        return list(self.folder(url, limit).images)

    def pairs(self, hq: str, lq: str | None, template: str = "{}", limit: int | None = None) -> list[PairFile]:
        """The first `limit` pairs of two folders; arguments and errors are those of `list_pairs`."""
        key = (hq, lq, template)
        if key not in self._pairs:
            self._pairs[key] = list_pairs(hq, lq, template)
        return self._pairs[key][:limit]

    def truths(self, hq: str, ids: Sequence[str], setting: str) -> list[str]:
        """URIs of the ground truth of these images; arguments and errors are those of `list_truths`."""
        if hq not in self._truths:
            self._truths[hq] = list_by_stem(hq)
        return list_truths(hq, ids, setting, self._truths[hq])

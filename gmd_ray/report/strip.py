"""Draw a before/after strip of an evaluated run: `python -m gmd_ray.report.strip RUN -o strip.webp`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gmd_ray.errors import DataError
from gmd_ray.evaluation.items import spread
from gmd_ray.evaluation.results import Evaluation, load_evaluation
from gmd_ray.images.files.encode import decode_png

COLUMNS = {"lq": "input", "baseline": "before", "adapted": "after", "hq": "ground truth"}
"""Picture of the evaluation -> heading. A column that no image has is left out."""
GAP, TEXT = 8, 22
"""Pixels between panels, and the height of a line of text."""


def typical(evaluation: Evaluation, dataset: str, count: int) -> list[str]:
    """Return the ids of the pictured images whose PSNR gain is nearest the median of all gains, sorted by id.

    Without PSNR values the images are taken evenly over the test set. The choice never depends on how they look.
    """
    pictured = evaluation.pictured(dataset)
    before, after = (evaluation.values(name, dataset, "psnr") for name in ("baseline", "adapted"))
    gains = {image: after[image] - before[image] for image in before.keys() & after.keys()}
    known = [image for image in pictured if image in gains]
    if not known:
        return spread(pictured, count)
    median = statistics.median(gains.values())
    return sorted(sorted(known, key=lambda image: (abs(gains[image] - median), image))[:count])


def make_strip(evaluation: Evaluation, dataset: str = "target", count: int = 3, width: int = 192) -> Image.Image:
    """Draw one row for each of `count` images, with the PSNR of each version where it was measured.

    Args:
        width: pixels of one panel; pictures are enlarged without interpolation.

    Raises:
        DataError: the evaluation kept no pictures of this test set.
    """
    images = typical(evaluation, dataset, count)
    if not images:
        raise DataError(f"no pictures of the {dataset} images; evaluate with evaluation.report_images above 0")
    names = [name for name in COLUMNS if any(evaluation.picture(dataset, image, name) for image in images)]
    font = ImageFont.load_default(size=15)
    strip = Image.new("RGB", (len(names) * (width + GAP) - GAP, TEXT + len(images) * (width + TEXT)), "white")
    draw = ImageDraw.Draw(strip)
    for column, name in enumerate(names):
        left = column * (width + GAP)
        draw.text((left + 2, 2), COLUMNS[name], "black", font)
        for row, image in enumerate(images):
            top = TEXT + row * (width + TEXT)
            if (png := evaluation.picture(dataset, image, name)) is None:
                continue
            panel = Image.fromarray(np.rint(decode_png(png) * 255).astype(np.uint8))
            height = min(width, round(width * panel.height / panel.width))
            strip.paste(panel.resize((width, height), Image.Resampling.NEAREST), (left, top))
            if (psnr := evaluation.values(name, dataset, "psnr").get(image)) is not None:
                draw.text((left + 2, top + width + 1), f"{psnr:.2f} dB", "black", font)
    return strip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="directory of an evaluated run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="image to write: .webp or .png")
    parser.add_argument("--count", type=int, default=3, help="rows, 3 by default")
    parser.add_argument("--quality", type=int, help="of a lossy .webp, 0 to 100; lossless without it")
    args = parser.parse_args(argv)
    strip = make_strip(load_evaluation(args.run), count=args.count)
    strip.save(args.output, lossless=args.quality is None, quality=80 if args.quality is None else args.quality)


if __name__ == "__main__":
    main()

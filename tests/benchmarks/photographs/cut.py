"""Cut a folder of test pictures into squares: `python -m tests.benchmarks.photographs.cut FOLDER OUT --side 96`.

`NAME.png` becomes `NAME_0.png`, `NAME_1.png` and so on, row by row; what does not fill a square is left out. More and
smaller pictures give the same mean of squared errors, and a count of images that a table can be asked for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gmd_ray.images.files.decode import decode_8bit
from gmd_ray.images.files.encode import encode_png


def cut(folder: Path, out: Path, side: int) -> int:
    """Write the squares of all PNG files of a folder; returns their number."""
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for file in sorted(folder.glob("*.png")):
        picture = decode_8bit(file.read_bytes())
        height, width = picture.shape[0] // side, picture.shape[1] // side
        for k in range(height * width):
            top, left = k // width * side, k % width * side
            square = picture[top : top + side, left : left + side]
            (out / f"{file.stem}_{k}.png").write_bytes(encode_png(square))
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=96)
    args = parser.parse_args()
    print(f"{cut(args.folder, args.out, args.side)} squares of {args.side} pixels in {args.out}")


if __name__ == "__main__":
    main()

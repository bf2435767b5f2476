"""`gmd-ray restore` for a cluster: `ray job submit --working-dir . -- python jobs/restore.py -i IN -o OUT -m MODEL`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the submitted copy, not an installed one

from gmd_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["restore", *sys.argv[1:]]))

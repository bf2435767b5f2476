"""Python imports this file as each process of the tests starts: tests/conftest.py has put its folder on PYTHONPATH.

The tests start some two hundred processes that import torch, and full garbage collections, which find nothing there,
take a quarter of such an import. So they come a tenth as often as by default.
"""

import gc

gc.set_threshold(700, 10, 100)

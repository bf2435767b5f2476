"""The preview of a run: a few photos through the real stages before any money is spent, and a grid of settings."""

from gmd_ray.preview.page import make_page
from gmd_ray.preview.run import Preview, preview

__all__ = ["Preview", "make_page", "preview"]

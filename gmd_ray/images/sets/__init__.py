"""Sets of images: the inputs of a run, pairs of clean and low-quality images, and frozen sets."""

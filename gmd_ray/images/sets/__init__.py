"""Sets of images: what a run reads, pairs of clean and low-quality images, frozen test sets."""

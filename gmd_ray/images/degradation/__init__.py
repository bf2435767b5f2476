"""Synthetic degradations: clean images in, low-quality images out."""

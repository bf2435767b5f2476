"""Synthetic degradations, which make low-quality images from clean ones."""

"""Latent diffusion students. See docs/method.md, "Students"."""

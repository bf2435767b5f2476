"""Latent diffusion students."""

"""The FLUX.1 family of teachers."""

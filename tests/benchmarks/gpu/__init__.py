"""Benchmarks for one GPU: a table of the teacher's cases within minutes, and Stage 2."""

"""Checkpoint files of students: formats, weight layouts, and where weights lie inside a file."""

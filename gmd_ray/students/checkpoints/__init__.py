"""Checkpoint files of students: formats, layouts, and the location of the weights inside a file."""

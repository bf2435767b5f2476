"""Verbs that turn a folder of images into another: restore with a student, import from other formats."""

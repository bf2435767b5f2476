"""Commands that make a folder of images: restoring one with a student, and importing one from other formats."""

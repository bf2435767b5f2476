"""Checks of a run while it generates, which warn and change nothing."""

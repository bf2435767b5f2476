"""Checks of a finished pair store: its files, its counts, and the photos it was made of."""

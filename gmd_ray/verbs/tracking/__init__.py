"""Verbs that work on MLflow alone."""

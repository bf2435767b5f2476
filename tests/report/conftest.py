"""An evaluated run, as the evaluation's tests make it."""

from tests.evaluation.conftest import run, students

__all__ = ["run", "students"]

"""Students: the restorers that are adapted."""

from __future__ import annotations

from gmd_ray.students.protocol import Student
from gmd_ray.students.spandrel_student import load_student

__all__ = ["Student", "load_student"]

"""Students: the image restorers that gmd_ray adapts."""

from __future__ import annotations

from gmd_ray.students.fresh import new_checkpoint, reinitialised
from gmd_ray.students.loading import load_student
from gmd_ray.students.module_student import ModuleStudent
from gmd_ray.students.protocol import Student
from gmd_ray.students.scale import student_scale

__all__ = ["ModuleStudent", "Student", "load_student", "new_checkpoint", "reinitialised", "student_scale"]

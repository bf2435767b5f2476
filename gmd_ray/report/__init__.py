"""Pages for people: the report of a run, the sheet of its pairs, the gate's page, and the strip of pictures."""

from gmd_ray.report.write import write_report

__all__ = ["write_report"]

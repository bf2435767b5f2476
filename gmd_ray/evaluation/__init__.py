"""Stage 3: measuring students on held-out images, with tables."""

from gmd_ray.evaluation.differences import Difference
from gmd_ray.evaluation.evaluate import evaluate, record
from gmd_ray.evaluation.results import Evaluation, load_evaluation
from gmd_ray.evaluation.summaries import markdown

__all__ = ["Difference", "Evaluation", "evaluate", "load_evaluation", "markdown", "record"]

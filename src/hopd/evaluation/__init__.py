"""Full-length accuracy, and divergence from the teacher on held-out answers."""

from hopd.evaluation.accuracy import Accuracy, evaluate, measure
from hopd.evaluation.divergence import Divergence, measure_divergence
from hopd.evaluation.evaluation import Evaluation
from hopd.evaluation.evaluator import Evaluator
from hopd.evaluation.statistics import bootstrap_interval, pass_at

__all__ = [
    "Accuracy",
    "Divergence",
    "Evaluation",
    "Evaluator",
    "bootstrap_interval",
    "evaluate",
    "measure",
    "measure_divergence",
    "pass_at",
]

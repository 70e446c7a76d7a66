"""Measures a student at the full length: accuracy on a task, or divergence from the teacher on held-out answers.

It knows engines, tasks and the recipe's evaluation section. It does not know the horizon or the optimiser.
"""

from hopd.evaluation.accuracy import Accuracy, evaluate, measure
from hopd.evaluation.divergence import Divergence, measure_divergence
from hopd.evaluation.evaluation import Evaluation
from hopd.evaluation.evaluator import Evaluator
from hopd.evaluation.intervals import bootstrap_interval, pass_at

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

"""The paper's two navigation tasks: Gaussian policies whose actions are the tokens, on hopd's own horizons."""

from hopd.control.course import Course, Trajectories
from hopd.control.distillation import Curve, Point, distil
from hopd.control.policy import MlpPolicy, OptimalPolicy, Policy, TransformerPolicy

__all__ = [
    "Course",
    "Curve",
    "MlpPolicy",
    "OptimalPolicy",
    "Point",
    "Policy",
    "Trajectories",
    "TransformerPolicy",
    "distil",
]

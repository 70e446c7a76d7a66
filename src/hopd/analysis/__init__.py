"""What a student and a teacher are like, position by position, and how finished runs differ."""

from hopd.analysis.comparison import Comparison, compare
from hopd.analysis.probe import Probe, probe

__all__ = ["Comparison", "Probe", "compare", "probe"]

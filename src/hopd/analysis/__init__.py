"""Analyses models and runs: divergence and gradients by position, prefixes, segments, comparison of runs.

Only the command line and the public names of `hopd` import it; it changes nothing in a run.
"""

from hopd.analysis.alignment import Alignment, alignment
from hopd.analysis.comparison import Comparison, compare
from hopd.analysis.probe import Probe, probe

__all__ = ["Alignment", "Comparison", "Probe", "alignment", "compare", "probe"]

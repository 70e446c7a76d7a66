"""Analyses models and runs: divergence by position, continuation of prefixes, segment ablation, comparison of runs.

Only the command line and the public names of `hopd` import it; it changes nothing in a run.
"""

from hopd.analysis.comparison import Comparison, compare
from hopd.analysis.probe import Probe, probe

__all__ = ["Comparison", "Probe", "compare", "probe"]

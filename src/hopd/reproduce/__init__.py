"""The paper's experiments, run again at a size that two cores can do, each with a page that says what held."""

from hopd.reproduce.continuation import PrefixContinuation
from hopd.reproduce.count_bits import COUNT_BITS
from hopd.reproduce.experiment import Experiment
from hopd.reproduce.horizons import QUICKSTART
from hopd.reproduce.long_addition import LONG_ADDITION
from hopd.reproduce.navigation import SimpleNavigation
from hopd.reproduce.obstacle import AutoregressiveNavigation
from hopd.reproduce.reverse import ReverseDistillation
from hopd.reproduce.run import reproduce
from hopd.reproduce.segments import SegmentAblation
from hopd.reproduce.two_phase import TWO_PHASE
from hopd.reproduce.variance import SignalVariance

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        SimpleNavigation(),
        SignalVariance(),
        AutoregressiveNavigation(),
        QUICKSTART,
        LONG_ADDITION,
        TWO_PHASE,
        COUNT_BITS,
        PrefixContinuation(),
        ReverseDistillation(),
        SegmentAblation(),
    )
}

__all__ = ["EXPERIMENTS", "Experiment", "reproduce"]

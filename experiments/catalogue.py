"""Lists all experiments by name, in the order in which they run."""

from experiments.experiment import Experiment
from experiments.language.block_gradients import BlockGradients
from experiments.language.count_bits import COUNT_BITS
from experiments.language.long_addition import LONG_ADDITION
from experiments.language.prefix_continuation import PrefixContinuation
from experiments.language.quickstart_horizons import QUICKSTART
from experiments.language.reverse_distillation import ReverseDistillation
from experiments.language.segment_ablation import SegmentAblation
from experiments.language.self_distillation import SELF_DISTILLATION
from experiments.language.two_phase import TWO_PHASE
from experiments.navigation.autoregressive_navigation import AutoregressiveNavigation
from experiments.navigation.signal_variance import SignalVariance
from experiments.navigation.simple_navigation import SimpleNavigation

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
        SELF_DISTILLATION,
        PrefixContinuation(),
        ReverseDistillation(),
        SegmentAblation(),
        BlockGradients(),
    )
}

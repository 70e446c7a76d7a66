"""Compares horizons on the quickstart's task."""

from experiments.language.horizons import HorizonComparison
from experiments.language.setting import HELD_OUT, OPD, POPD, topd

QUICKSTART = HorizonComparison(
    name="quickstart-horizons",
    title="The quickstart's horizons: OPD, POPD, TOPD",
    source="After Table 1 of the paper, on a task and models of our own",
    text=(
        "Repeated addition with a scratchpad, 353 tokens an answer; student and teacher of 0.65M parameters "
        f"from the package; 32 rollouts a step. Evaluated on {HELD_OUT} held-out problems to the full length. "
        "The skill, addition with carry, is the same at every position of an answer: the case where the paper expects "
        "a short horizon to suffice. Seconds are the processor's, of training."
    ),
    plan={
        "OPD": (OPD, 16, 2),
        "POPD": (POPD, 24, 3),
        "TOPD 0.1": (topd(0.1), 48, 6),
    },
)

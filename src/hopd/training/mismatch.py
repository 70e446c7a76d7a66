"""Engine and learner give log-probs of the same tokens: how far apart they may be, and what to do beyond that."""

from hopd.recipe import Recipe

EXPLAINED = {"fp32": 1e-2, "bf16": 0.2}  # nats a token that rounding can explain, generously


def alarm_threshold(recipe: Recipe) -> float:
    """In nats a token."""
    return recipe.rollout.mismatch_alarm or EXPLAINED[recipe.training.precision]


def mismatch_alarm(recipe: Recipe, step: int, mismatch: float) -> str | None:
    """A sentence where a step's mean mismatch (nats a token) is above the threshold."""
    threshold = alarm_threshold(recipe)
    if mismatch <= threshold:
        return None
    engine, precision = recipe.rollout.engine.kind, recipe.training.precision
    if recipe.training.mini_batch is not None:
        advice = "later mini-batches see newer weights than those that sampled: use larger ones, or"
    else:
        advice = f"does the {engine} engine compute in {precision} too, and the same? If rounding explains it,"
    return (
        f"step {step}: the engine's and the learner's log-probs of the same tokens are {mismatch:.3g} nats a token "
        f"apart, above rollout.mismatch_alarm = {threshold:g}, so what is sampled is not what is trained; {advice} "
        "write objective: {estimator: sampled, importance_cap: 2}, or a higher mismatch_alarm"
    )

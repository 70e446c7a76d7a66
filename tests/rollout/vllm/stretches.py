"""Samples as continued rollouts do: some tokens in one step, more in the next."""

from hopd.rollout import FinishReason, Rollout, Stretch


def begin(prompts, seed=0, samples=1):
    """Returns rollouts without tokens, in the order of `Engine.sample`."""
    return [Rollout.start(prompt, sample, seed) for prompt in prompts for sample in range(samples)]


def continued(engine, rollouts, limits, sampling):
    """Returns the rollouts after as many steps as there are limits; those that have ended stay as they are."""
    for limit in limits:
        going = [rollout for rollout in rollouts if rollout.finish is FinishReason.HORIZON]
        longer = iter(engine.extend([Stretch(rollout, limit) for rollout in going], sampling))
        rollouts = [next(longer) if rollout.finish is FinishReason.HORIZON else rollout for rollout in rollouts]
    return rollouts

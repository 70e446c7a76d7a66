"""Prefix continuation (Fig. 9 and 10): the teacher begins an answer, the student ends it."""

from collections.abc import Sequence

import torch

from hopd.errors import RecipeError
from hopd.evaluation.accuracy import Accuracy, measure
from hopd.model import LanguageModel
from hopd.rollout import FinishReason, NativeEngine, Prompt, Rollout, Sampling
from hopd.tasks import PromptSet

RATIOS = (0.0, 0.025, 0.05, 0.1, 0.25, 0.5)


def continuation(
    student: LanguageModel,
    teacher: LanguageModel,
    prompts: PromptSet,
    full_tokens: int,
    sampling: Sampling,
    ratios: Sequence[float] = RATIOS,
    prefixes: int = 1,
    seed: int = 0,
    rows: int = 128,
) -> dict[float, Accuracy]:
    """The accuracy of answers whose first ρ · T tokens are the teacher's, for each ρ of `ratios`.

    The teacher answers each prompt `prefixes` times; all ratios cut the same answers. Where it has ended before ρ · T,
    its answer stands. Raises `RecipeError` for a ratio outside of [0, 1).
    """
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise RecipeError(f"the teacher's share of an answer must be in [0, 1), got {ratio:g}")
    longest = max(1, round(max(ratios) * full_tokens))
    written = NativeEngine(teacher, rows).sample(prompts.prompts, longest, sampling, seed, prefixes)
    engine = NativeEngine(student, rows)
    found = {}
    for ratio in ratios:
        cut = round(ratio * full_tokens)
        open_ended = {i: begun for i, begun in enumerate(written) if not _ended_within(begun, cut)}
        begun = [Prompt(i, torch.cat([of.prompt.ids, of.ids[:cut]])) for i, of in open_ended.items()]
        ends = engine.sample(begun, full_tokens - cut, sampling, seed + 1) if begun else []
        whole = dict(enumerate(written)) | {end.prompt.id: _joined(written[end.prompt.id], cut, end) for end in ends}
        found[ratio] = measure([whole[i] for i in range(len(written))], prompts, prefixes)
    return found


def _ended_within(rollout: Rollout, tokens: int) -> bool:
    return rollout.finish is not FinishReason.HORIZON and rollout.length <= tokens


def _joined(begun: Rollout, cut: int, end: Rollout) -> Rollout:
    ids, log_probs = torch.cat([begun.ids[:cut], end.ids]), torch.cat([begun.log_probs[:cut], end.log_probs])
    return Rollout(begun.prompt, begun.sample, ids, log_probs, end.finish)

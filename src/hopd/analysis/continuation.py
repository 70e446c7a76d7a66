"""Measures prefix continuation (Fig. 9 and 10): the teacher writes the start of an answer, the student the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hopd.assembly.models import load_models
from hopd.assembly.prompts import build_prompts
from hopd.errors import RecipeError
from hopd.evaluation.accuracy import Accuracy, measure
from hopd.evaluation.intervals import paired_interval
from hopd.model import LanguageModel
from hopd.processes import Processes
from hopd.recipe import ModelSource, Recipe
from hopd.rollout import FinishReason, NativeEngine, Prompt, Rollout, Sampling, answers_of
from hopd.run.files import json_text
from hopd.tasks import PromptSet

RATIOS = (0.0, 0.025, 0.05, 0.1, 0.25, 0.5)


@dataclass(frozen=True)
class Continuation:
    """Holds the accuracy of each student, by name, for each fraction ρ of the full length that the teacher wrote.

    All students continue the same prefixes of the same problems. `full_tokens` is the full length T.
    """

    full_tokens: int
    accuracy: Mapping[str, Mapping[float, Accuracy]]

    def gain(self, student: str) -> tuple[float, tuple[float, float]]:
        """Returns how much the longest prefix raises the accuracy, with its 95 % interval, paired by problem."""
        found = self.accuracy[student]
        return _gain(found[min(found)], found[max(found)])

    def needed(self, student: str) -> float:
        """Returns the smallest ρ whose accuracy is not significantly below that of the longest prefix."""
        found = self.accuracy[student]
        return next(ratio for ratio in sorted(found) if _gain(found[ratio], found[max(found)])[1][0] <= 0)

    def sentences(self) -> tuple[str, ...]:
        """Returns two sentences for each student: how much a prefix helps, and how long it has to be."""
        sentences = []
        for name, found in self.accuracy.items():
            shortest, longest = found[min(found)].accuracy, found[max(found)].accuracy
            gain, (low, high) = self.gain(name)
            sentences.append(
                f"{name}: with {max(found) * self.full_tokens:.0f} tokens from the teacher accuracy goes from "
                f"{100 * shortest:.1f} % to {100 * longest:.1f} %, {100 * gain:+.1f} points (95 % interval "
                f"{100 * low:+.1f} to {100 * high:+.1f})."
            )
            needed = self.needed(name)
            sentences.append(
                f"{name}: a prefix of {needed * self.full_tokens:.0f} tokens already helps as much, as far as "
                f"{found[needed].problems} problems can show."
                if needed > min(found)
                else f"{name}: there is no evidence that a prefix from the teacher helps."
            )
        return tuple(sentences)

    def save(self, out: Path) -> None:
        """Writes `out/continuation.json` and `out/continuation.png`."""
        out.mkdir(parents=True, exist_ok=True)
        accuracy = {
            name: {f"{ratio:g}": measured.as_dict() for ratio, measured in found.items()}
            for name, found in self.accuracy.items()
        }
        content = {"sentences": self.sentences(), "full_tokens": self.full_tokens, "accuracy": accuracy}
        (out / "continuation.json").write_text(json_text(content, indent=1), encoding="utf-8")
        draw(self, out / "continuation.png")


def continuation_recipe(
    recipe: Recipe, after: str | None = None, ratios: Sequence[float] = RATIOS, problems: int | None = None
) -> Continuation:
    """Runs `hopd continuation`: measures the recipe's student and, if given, the trained one (`after`, its source).

    It uses the first `problems` problems, the sampling and the full length of the recipe's evaluation. Raises
    `RecipeError` if the recipe has no evaluation of accuracy, or several teachers.
    """
    settings = recipe.evaluation
    if not isinstance(recipe.teacher, ModelSource):
        raise RecipeError("a continuation needs one local teacher that writes; write teacher: {model: ...}")
    if settings is None or settings.measure != "accuracy":
        raise RecipeError(
            "a continuation needs answers that can be checked; write evaluation: {task: ...} in the recipe"
        )
    if not ratios:
        raise RecipeError("a continuation needs the fractions of an answer that the teacher writes, such as 0,0.1,0.5")
    device = Processes.start().device
    full, found = recipe.rollout.full_tokens, {}
    sources = {"before": recipe} | ({"after": recipe.with_changes(student={"model": after})} if after else {})
    for name, of_student in sources.items():
        models = load_models(of_student.unsharded(), device)
        student, teacher = models.student, models.teachers[None]
        chosen = build_prompts(settings.task, student, recipe.rollout, models.teachers, recipe.own_prompts)
        few = replace(chosen, prompts=chosen.prompts[:problems])
        found[name] = continuation(
            student, teacher, few, full, settings.sampling, ratios, settings.samples, recipe.seed, settings.rows
        )
    return Continuation(full, found)


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
    """Returns the accuracy of answers whose first ρ · T tokens are the teacher's, for each ρ of `ratios`.

    The teacher answers each prompt `prefixes` times, and all ratios cut the same answers. An answer that the teacher
    ended before ρ · T is taken as it is. `rows` is the number of concurrent sequences. Raises `RecipeError` for a ratio
    outside [0, 1).
    """
    for ratio in ratios:
        if not 0 <= ratio < 1:
            raise RecipeError(f"the teacher's fraction of an answer must be in [0, 1), got {ratio:g}")
    longest = max(1, round(max(ratios) * full_tokens))
    written = answers_of(NativeEngine(teacher, rows), prompts.prompts, longest, sampling, seed, prefixes)
    engine = NativeEngine(student, rows)
    found = {}
    for ratio in ratios:
        cut = round(ratio * full_tokens)
        open_ended = {i: begun for i, begun in enumerate(written) if not _ended_within(begun, cut)}
        begun = [Prompt(i, torch.cat([of.prompt.ids, of.ids[:cut]])) for i, of in open_ended.items()]
        ends = engine.sample(begun, full_tokens - cut, sampling, seed + 1) if begun else []
        whole = dict(enumerate(written)) | {end.prompt.id: _joined(written[end.prompt.id], cut, end) for end in ends}
        rollouts = [whole[i] for i in range(len(written))]
        found[ratio] = measure(rollouts, prompts.check(rollouts), prefixes)
    return found


def draw(found: Continuation, path: Path) -> None:
    """Plots accuracy against ρ, with one line for each student."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 3.8), layout="constrained")
    for name, accuracy in found.accuracy.items():
        means = [100 * measured.accuracy for measured in accuracy.values()]
        low, high = zip(*(measured.interval for measured in accuracy.values()), strict=True)
        panel.plot(list(accuracy), means, marker="o", markersize=3, label=name)
        panel.fill_between(list(accuracy), 100 * np.array(low), 100 * np.array(high), alpha=0.15)
    panel.set(xlabel="fraction of the answer that the teacher wrote", ylabel="accuracy, %")
    panel.legend(frameon=False)
    panel.grid(alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _gain(shorter: Accuracy, longer: Accuracy) -> tuple[float, tuple[float, float]]:
    differences = np.subtract(longer.scores, shorter.scores)
    return float(differences.mean()), paired_interval(differences[None])


def _ended_within(rollout: Rollout, tokens: int) -> bool:
    return rollout.finish is not FinishReason.HORIZON and rollout.length <= tokens


def _joined(begun: Rollout, cut: int, end: Rollout) -> Rollout:
    """Joins the teacher's first `cut` tokens and the student's continuation into one rollout."""
    ids, log_probs = torch.cat([begun.ids[:cut], end.ids]), torch.cat([begun.log_probs[:cut], end.log_probs])
    return Rollout(begun.prompt, begun.sample, ids, log_probs, end.finish)

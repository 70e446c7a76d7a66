"""Names the tasks on which spends are compared, and how long plain OPD trains on each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.language import count_bits, late_noise, long_addition, simplify_fractions, two_phase
from experiments.language.setting import Setting, quickstart
from hopd.recipe import Recipe

VALIDATION, TEST = 128, 512  # problems
TENTH = 10  # of the full length: the paper's TOPD


@dataclass(frozen=True)
class Case:
    """Describes a task: `steps` of OPD have `prompts` rollouts of about `answer` tokens, at most `full_tokens`."""

    name: str
    steps: int
    prompts: int
    answer: int
    full_tokens: int
    setting: Setting | None = None
    make: Callable[[Path], None] | None = None

    @classmethod
    def of(cls, name: str, steps: int, answer: int, setting: Setting, make: Callable[[Path], None]) -> "Case":
        return cls(name, steps, setting.prompts, answer, setting.full_tokens, setting, make)

    def recipe(
        self, name: str, root: Path, horizon: Mapping[str, Any], steps: int, seed: int, training: Mapping[str, Any]
    ) -> Recipe:
        """Returns a recipe that is evaluated on validation problems, eight times."""
        work = root / self.name / "runs"
        recipe = quickstart(name, seed, work, horizon, steps, max(1, steps // 8), self.setting)
        settings = recipe.training.model_dump() | dict(training)
        return recipe.with_changes(training=settings, evaluation=self.evaluation(recipe, VALIDATION, seed=1))

    def evaluation(self, recipe: Recipe, problems: int, seed: int) -> dict[str, Any]:
        """Returns the evaluation on other problems; those of seed 0 are the test's."""
        assert recipe.evaluation is not None
        section = recipe.evaluation.model_dump()
        first = section["task"].get("seed") or 0
        task = section["task"] | {"size": problems, "seed": first + 100_000 * seed}
        return section | {"task": task, "at_start": False}


CASES = {
    case.name: case
    for case in (
        Case("quickstart", 16, 32, 353, 360),
        Case.of("two-phase", 48, 310, two_phase.SETTING, two_phase.make),
        Case.of("count-bits", 32, 471, count_bits.SETTING, count_bits.make),
        Case.of("long-addition", 32, 701, long_addition.SETTING, long_addition.make),
        Case.of("late-noise", 16, 353, late_noise.SETTING, late_noise.make),
        Case.of("simplify-fractions", 32, 260, simplify_fractions.SETTING, simplify_fractions.make),
    )
}

"""Names the parts of a run, which the loop, the preflight and the forecasts take."""

from collections.abc import Sequence
from dataclasses import dataclass

from hopd.evaluation import Evaluator
from hopd.horizon import Controller
from hopd.model import LanguageModel
from hopd.objective import Full
from hopd.processes import Processes
from hopd.recipe import Recipe
from hopd.rollout import Engine, Sampling
from hopd.run.checkpoint import Checkpoint
from hopd.run.checkpointer import Checkpointer
from hopd.run.directory import RunDirectory
from hopd.run.interruption import Interruption
from hopd.run.ledger import Ledger
from hopd.run.marks import Marks
from hopd.run.recorder import Recorder
from hopd.tasks import PromptSet
from hopd.training.averaging import WeightAverage
from hopd.training.flight import Flight
from hopd.training.learner import Learner
from hopd.training.order import PromptOrder
from hopd.training.statistics import StepStatistics


@dataclass
class Parts:
    """Holds what `build` made, before anything moves. `teachers` are the local ones by name (None: the only one).
    `notes` are sentences for a person. `resumed` is the checkpoint that the student's weights came from, if the run
    is resumed. `overrides` are the command line's, for a resumed run to repeat."""

    recipe: Recipe
    processes: Processes
    student: LanguageModel
    teachers: dict[str | None, LanguageModel]
    notes: list[str]
    prompts: PromptSet
    order: PromptOrder
    flight: Flight
    total_steps: int
    controller: Controller
    engine: Engine
    sampling: Sampling
    learner: Learner
    average: WeightAverage
    evaluator: Evaluator | None
    ledger: Ledger
    directory: RunDirectory
    checkpointer: Checkpointer
    recorder: Recorder
    interruption: Interruption
    resumed: Checkpoint | None
    marks: Marks
    overrides: Sequence[str]

    def close(self) -> None:
        """Ends the processes that the run has started."""
        if self.evaluator is not None:
            self.evaluator.close()

    def statistics(self) -> StepStatistics:
        """Returns the statistics of a step before it has begun."""
        objective = self.recipe.objective
        exact = isinstance(objective, Full) and objective.divergence == "reverse_kl" and not objective.importance_cap
        return StepStatistics(self.recipe.rollout.full_tokens, exact)

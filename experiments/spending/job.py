"""Trains one student by one spend at one rate, and tests it."""

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.language.setting import student_after
from experiments.spending.case import CASES, TEST
from experiments.spending.spend import Spend, grid, schemes, share_of
from hopd.assembly.evaluator import evaluate_model
from hopd.distiller import Distiller
from hopd.run.progress import Progress

END_GAME = {"schedule": "wsd", "ema": 0.9}
KEPT = ("step", "accuracy", "generated_tokens", "training_flops", "serial_tokens", "training_seconds", "stop_rate")


@dataclass(frozen=True)
class Job:
    """Names a run: `spend` is a scheme, a place of the grid, or the name of a controller; `share` of OPD's tokens."""

    case: str
    spend: str
    rate: float
    seed: int = 0
    share: float | None = None
    end_game: bool = False
    horizon: dict[str, Any] | None = field(default=None)

    @property
    def name(self) -> str:
        end = "-end" if self.end_game else ""
        return "".join(c if c.isalnum() else "-" for c in f"{self.spend}-{self.rate:g}-{self.seed}{end}")

    def run(self, root: Path) -> dict[str, Any]:
        """Returns what the run showed, as JSON can hold it. `root` has the models of each case."""
        case = CASES[self.case]
        spend = (schemes(case) | grid(case)).get(self.spend)
        if self.horizon is not None:
            spend = Spend(self.horizon, case.prompts * case.full_tokens / 10)
        assert spend is not None, f"{self.case} has no spend {self.spend!r}"
        steps = spend.steps(case, self.share or share_of(self.spend))
        training = {"learning_rate": self.rate} | (END_GAME if self.end_game else {})
        recipe = case.recipe(self.name, root, spend.horizon, steps, self.seed, training)
        shutil.rmtree(recipe.directory, ignore_errors=True)
        began = time.perf_counter()
        result = Distiller.of(recipe, progress=Progress(quiet=True), clock=time.process_time).train()
        trained = time.perf_counter() - began
        curve = [{key: line[key] for key in KEPT if key in line} for line in result.directory.read("evaluations")]
        student = Path(student_after(recipe))
        tested = recipe.with_changes(evaluation=case.evaluation(recipe, TEST, seed=0))
        score = evaluate_model(str(student / "average" if self.end_game else student), tested).score
        shutil.rmtree(recipe.directory)
        seconds = {"seconds": trained, "test_seconds": time.perf_counter() - began - trained}
        return asdict(self) | {"steps": steps, "curve": curve, "test": score} | seconds

"""Trains one student by one spend at one rate, and tests it."""

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.language.setting import student_after
from experiments.spending.case import CASES, TEST
from experiments.spending.spend import all_spends
from hopd.assembly.evaluator import evaluate_model
from hopd.distiller import Distiller
from hopd.run.progress import Progress

END_GAME = {"schedule": "wsd", "ema": 0.9}
KEPT = ("step", "accuracy", "generated_tokens", "training_flops", "serial_tokens", "training_seconds", "stop_rate")


@dataclass(frozen=True)
class Job:
    """Names a run: a `spend` of a case, at a learning rate. With `end_game` the rate decays at the end, and weights are
    averaged; with `tested`, the last student is tested on problems that chose nothing."""

    case: str
    spend: str
    rate: float
    seed: int = 0
    end_game: bool = False
    tested: bool = False

    @property
    def key(self) -> str:
        """Returns what tells the run from others."""
        return json.dumps(asdict(self), sort_keys=True)

    def run(self, root: Path) -> dict[str, Any]:
        """Returns what the run showed, as JSON can hold it. `root` has the models of each case."""
        case = CASES[self.case]
        spend = all_spends(case)[self.spend]
        training = {"learning_rate": self.rate} | (END_GAME if self.end_game else {})
        name = "run-" + "".join(letter for letter in self.key if letter.isalnum())
        recipe = case.recipe(name, root, spend.horizon, spend.steps(case), self.seed, training)
        shutil.rmtree(recipe.directory, ignore_errors=True)
        began = time.perf_counter()
        result = Distiller.of(recipe, progress=Progress(quiet=True), clock=time.process_time).train()
        curve = [{key: line[key] for key in KEPT if key in line} for line in result.directory.read("evaluations")]
        found: dict[str, Any] = {"steps": result.steps, "curve": curve}
        if self.tested:
            student = Path(student_after(recipe))
            tested = recipe.with_changes(evaluation=case.evaluation(recipe, TEST, seed=0))
            measure = evaluate_model(str(student / "average" if self.end_game else student), tested)
            found |= {"test": measure.score}
        found["reasons"] = _reasons(result.directory.read("horizon"))
        shutil.rmtree(recipe.directory)
        return asdict(self) | found | {"seconds": time.perf_counter() - began}


def _reasons(lines: Any) -> list[str]:
    """Returns the first reason and those that differ from the one before, each with its step."""
    seen, kept = "", []
    for line in lines:
        if line["reason"] != seen:
            kept.append(f"{line['step']}: {line['reason']}")
        seen = line["reason"]
    return kept if len(kept) < 40 else kept[:1]

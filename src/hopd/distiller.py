"""Runs the loop: decide on a spend, sample, score, update, observe, account.

It knows neither how its parts are made (`build`) nor how they do their work; this page names them in the order of a
step. The first process decides and writes, all of them sample and train.
"""

import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Unpack

from hopd.assembly import Parts, Replacements, build
from hopd.errors import CheckpointError, EngineError, HorizonError, Interrupted, ServerUnavailable
from hopd.evaluation import Evaluation
from hopd.horizon import Decision
from hopd.recipe import Recipe
from hopd.rollout import Rollout, fold
from hopd.run.directory import RunDirectory
from hopd.run.environment import utc_now
from hopd.run.lock import locked
from hopd.training.statistics import StepStatistics

# Errors that all processes raise together: then they can save together.
AGREED = (Interrupted, ServerUnavailable, EngineError, HorizonError)


@dataclass(frozen=True)
class Result:
    """Says how a run ended: complete steps and the last evaluation; `directory` holds everything else."""

    directory: RunDirectory
    steps: int
    evaluation: Evaluation | None


class Distiller:
    """Runs the parts: `Distiller.of(recipe).train()`; `hopd train` runs the preflight first."""

    def __init__(self, parts: Parts):
        self.parts = parts
        self.step = 0  # complete steps
        self.evaluation: Evaluation | None = None  # the last one
        self._updating = False  # within a step, whose weights belong to no complete one

    @classmethod
    def of(cls, recipe: Recipe, **given: Unpack[Replacements]) -> "Distiller":
        """Builds the parts of a recipe, with those of your own that are `given`: see `hopd.assembly.build`.

        Raises a `HopdError`, with one sentence, for anything in the recipe or its data that cannot work.
        """
        return cls(build(recipe, **given))

    def train(self) -> Result:
        """Runs to the last step, from the last checkpoint if there is one, and saves before every evaluation.

        An exception before a step's first update or in an evaluation costs no complete step: they are saved, and it is
        raised again. `Interrupted` comes on SIGTERM or Ctrl-C, `ServerUnavailable` if a teacher's or the rollouts'
        servers do not answer within the deadline, `EngineError` if rollouts are not the student's, `HorizonError` if a
        controller of your own decides on an impossible horizon, `RecipeError` if another process trains the run.
        """
        parts = self.parts
        with closing(parts), locked(parts.directory, parts.processes) as notes:
            for note in notes:
                parts.recorder.progress.note(note)
            self._resume()
            with parts.recorder.run(self.step, parts.total_steps, parts.recipe.yaml()), parts.interruption:
                try:
                    self._run()
                except (Exception, Interrupted) as error:
                    self._rescue(error)
                    raise
            if parts.processes.is_first:
                parts.directory.environment.end(self.step, finished=True)
        return Result(parts.directory, self.step, self.evaluation)

    def _run(self) -> None:
        parts = self.parts
        self._evaluate_if_due()
        while self.step < parts.total_steps:
            self._train_step()
            if self._evaluation_is_due() or parts.checkpointer.is_due(self.step):
                parts.checkpointer.save(self.step)
            self._evaluate_if_due()
            parts.interruption.agree(parts.processes)

    def _rescue(self, error: BaseException) -> None:
        """Saves the complete steps, where the processes can do so together and the weights are theirs."""
        parts = self.parts
        if isinstance(error, CheckpointError):
            return
        if parts.processes.is_first:
            parts.directory.environment.end(self.step, finished=False)
        agreed = isinstance(error, AGREED) or parts.processes.size == 1
        if agreed and not self._updating:
            parts.ledger.give_up()
            parts.checkpointer.save(self.step, self.evaluation)
            parts.processes.wait()  # a launcher ends all processes soon after the first has ended
            error.add_note(f"The {self.step} complete steps are saved: continue with --resume, in Python resume=True.")

    def _train_step(self) -> None:
        parts, learner = self.parts, self.parts.learner
        seed = fold(parts.recipe.seed, self.step)
        statistics = parts.statistics()
        with parts.interruption.interruptible():
            decision = self._decide()
            mini_batches = self._sample(decision, statistics)
            learner.fetch(mini_batches, seed)
        norm = 0.0
        for rollouts in mini_batches:
            # Until the first update, a step that is given up leaves nothing behind.
            with parts.interruption.interruptible() if rollouts is mini_batches[0] else nullcontext():
                if not parts.processes.total(len(rollouts)):
                    continue  # all of them go on
                learner.accumulate(rollouts, seed, statistics)
            self._updating = True
            norm = learner.apply(self.step)
            with parts.ledger.phase("update"):
                parts.average.update()
            statistics.add_rollouts(rollouts)
        parts.flight.complete()
        statistics = statistics.summed(parts.processes)
        evidence = statistics.evidence(self.step, decision.tokens)
        parts.controller.observe(evidence)
        self.step += 1
        self._updating = False
        measured = {"learning_rate": learner.optimizer.learning_rate(self.step - 1), "gradient_norm": norm}
        measured |= statistics.metrics() | learner.remote.metrics() | parts.engine.metrics()
        parts.recorder.step(self.step, decision, evidence, measured, learner.remote.alarm())

    def _decide(self) -> Decision:
        """Takes the first process's decision: a controller that looks at a clock may decide otherwise on another."""
        parts = self.parts
        mine = parts.controller.decide(self.step) if parts.processes.is_first else Decision(0, "")
        decision = parts.processes.broadcast(mine)
        decision.check(self.step, parts.recipe.rollout.full_tokens)
        return decision

    def _sample(self, decision: Decision, statistics: StepStatistics) -> list[list[Rollout]]:
        """Returns this process's rollouts that ended in the step, in mini-batches, one for each optimiser step."""
        parts, settings = self.parts, self.parts.recipe.rollout
        mini_batch = parts.recipe.training.mini_batch
        batches = parts.flight.deal(decision, self.step, mini_batch and mini_batch * settings.samples)
        sampled = [slot for slots in batches for slot in slots if not slot.rollout.is_reference]
        stretches = [slot.stretch(decision) for slot in sampled]
        with parts.ledger.phase("rollout"):
            anything = parts.processes.total(len(stretches))  # with off_policy.share: 1 there is nothing to sample
            rollouts = parts.engine.extend(stretches, parts.sampling) if anything else []
        parts.ledger.add_stretches(stretches, rollouts, parts.learner.student_cost)
        statistics.add_gained(parts.ledger.pending.generated_tokens)
        extended = iter(rollouts)
        mini_batches = [
            parts.flight.land(slots, [s.rollout if s.rollout.is_reference else next(extended) for s in slots])
            for slots in batches
        ]
        parts.ledger.add_ended([rollout for ended in mini_batches for rollout in ended], settings.full_tokens)
        return mini_batches

    def _evaluation_is_due(self) -> bool:
        parts, evaluator = self.parts, self.parts.evaluator
        flops = parts.ledger.run.training_flops
        return evaluator is not None and evaluator.is_due(self.step, parts.total_steps, flops, self.evaluation)

    def _evaluate_if_due(self) -> None:
        parts, evaluator = self.parts, self.parts.evaluator
        if evaluator is None or not self._evaluation_is_due():
            return
        at, started = utc_now(), time.perf_counter()
        with parts.ledger.phase("evaluation"), parts.average.as_student(), parts.interruption.interruptible():
            found = evaluator.run()
        parts.ledger.add(evaluated_tokens=found.measure.tokens)
        parts.ledger.commit(parts.processes)
        self.evaluation = Evaluation.of(self.step, found.measure, parts.ledger.run.cost)
        seconds = time.perf_counter() - started
        parts.recorder.evaluation(self.evaluation, found.scores, found.samples, at, seconds)
        parts.checkpointer.score(self.evaluation)

    def _resume(self) -> None:
        """Brings the directory, the ledger and all state to the last checkpoint, or to the beginning."""
        parts, resumed = self.parts, self.parts.resumed
        state = resumed.state if resumed else None
        if resumed and state:
            self.step = resumed.step
            parts.controller.load_state_dict(state["controller"])
            parts.learner.optimizer.load_state(resumed.tensors("optimizer"))
            rollout = parts.recipe.rollout  # checkpoints of 0.2 have no counters, and nothing in flight
            counters = {"started": self.step * rollout.prompts * rollout.samples, "opened": 0}
            parts.flight.load_state(state.get("flight", counters), resumed.tensors("flight"))
        evaluated = state is not None and bool(state.get("evaluated", state["score"] is not None))
        lines = []
        with parts.processes.together():
            if parts.processes.is_first:
                parts.directory.check_latest(resumed)
                parts.directory.clean()
                parts.directory.rewind(self.step, evaluated)
                lines = parts.directory.read("evaluations")[-1:]
        self.evaluation = next(map(Evaluation.of_line, parts.processes.broadcast(lines)), None)
        parts.ledger.resume(state["ledger"] if state else None)
        with parts.processes.together():
            if parts.processes.is_first and (self.step < parts.total_steps or self._evaluation_is_due()):
                parts.directory.create(parts.recipe, self.step, parts.overrides, parts.marks.all)

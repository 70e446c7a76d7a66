"""The loop: decide a horizon, sample, score, update, observe, account.

What a step is made of stands behind the nouns that this page names; what surrounds it (evaluation, checkpoints, files)
comes after it.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, broadcast_object_list, gather_object
from torch import Tensor

from hopd.attention import MATMUL, SDPA, attention_of, can_choose_attention
from hopd.errors import CheckpointError, EngineError, Interrupted, RecipeError, ServerUnavailable
from hopd.evaluation import Evaluator
from hopd.horizon import Controller, Decision
from hopd.recipe import AdaptersOff, Recipe
from hopd.rollout import Engine, NativeEngine, Rollout, fold
from hopd.rollout.build import build_engine
from hopd.tasks import build_prompts
from hopd.teacher import Teacher
from hopd.teacher.build import build_teacher
from hopd.training import checkpoint as checkpoints
from hopd.training.choice import choose_attention
from hopd.training.cost import PassCost
from hopd.training.delivery import Delivery
from hopd.training.files import RunDirectory
from hopd.training.interruption import Interruption
from hopd.training.learner import Learner
from hopd.training.ledger import Account, Ledger, peak_memory
from hopd.training.mismatch import mismatch_alarm
from hopd.training.models import load_models
from hopd.training.optimizer import MasterOptimizer
from hopd.training.order import PromptOrder
from hopd.training.progress import Progress
from hopd.training.sharding import Sharding, shard
from hopd.training.statistics import StepStatistics

SAMPLES_KEPT = 4  # rollouts of each evaluation that are written out for people to read


@dataclass(frozen=True)
class Result:
    """How a run ended; `directory` holds everything else."""

    directory: RunDirectory
    steps: int
    evaluation: dict[str, Any] | None


class Distiller:
    """A run of a recipe: `Distiller(recipe).train()`; `hopd train` runs the preflight first.

    `controller`, `engine` and `teacher` may be your own; each is otherwise made as the recipe says. `clock` is the
    ledger's: time.process_time counts the processor's seconds. Raises a `HopdError`, with one sentence, for anything in
    the recipe or its data that cannot work.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        resume: bool = False,
        controller: Controller | None = None,
        engine: Engine | None = None,
        teacher: Teacher | None = None,
        progress: Progress | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        check_trackers(recipe)
        self.recipe, rollout = recipe, recipe.rollout
        self.directory = RunDirectory(recipe.directory)
        resumed = self.directory.latest_checkpoint(recipe, resume)
        self.processes = Accelerator(
            cpu=not torch.accelerator.is_available(),  # several processes on CPUs find each other only if told so
            log_with=list(recipe.trackers) or None,
            project_config=ProjectConfiguration(str(recipe.directory)),
        )
        check_same_checkpoint(resumed.step if resumed else 0)
        self.progress = progress or Progress(quiet=not self.processes.is_main_process)

        models = load_models(recipe, self.processes.device, resumed.path if resumed else None)
        self.student, self.teachers, self.notes = models.student, models.teachers, models.notes
        self.prompts = build_prompts(recipe.task, self.student.tokenizer, rollout.prompt_tokens, rollout.too_long)
        self.order = PromptOrder(self.prompts.prompts, rollout.prompts, recipe.seed)
        self.total_steps = self.order.steps(recipe)
        self.controller = controller or recipe.controller()

        self.sharding = self._sharding()
        self.engine = engine or self._engine()
        self.evaluator = self._evaluator()
        self.cost = PassCost.of(self.student)
        self.ledger = Ledger(self.directory.path / "ledger.json", self.processes.is_main_process, clock)
        self.optimizer = MasterOptimizer(self.student.model, recipe.training, self.total_steps)
        self._use_attention(resumed.state.get("attention") if resumed else None)  # in the precision that it trains in
        if recipe.training.gradient_checkpointing:
            self.student.checkpoint_activations()
        scoring = {None: self.student} if isinstance(recipe.teacher, AdaptersOff) else self.teachers
        self.learner = Learner(
            student=self.student,
            teacher=teacher or self._teacher(resumed.state if resumed else {}),
            student_cost=self.cost,
            teacher_costs={name: PassCost.of(model) for name, model in scoring.items()},
            objective=recipe.objective,
            window=recipe.loss_window(),
            optimizer=self.optimizer,
            ledger=self.ledger,
            sharding=self.sharding,
            reduce=self._reduce,
            temperature=rollout.temperature,
            tokens_per_batch=recipe.training.tokens_per_batch,
        )
        self.interruption = Interruption(together=self.processes.num_processes > 1)
        self.step = 0  # complete steps
        self.evaluated: dict[str, Any] | None = None  # the last evaluation, as it stands in evaluations.jsonl
        self._resumed = resumed

    def train(self) -> Result:
        """Runs to the last step, from the last checkpoint if there is one.

        Raises `Interrupted` on SIGTERM or Ctrl-C, `ServerUnavailable` if a teacher's or the rollouts' servers do not
        answer within the deadline, and `EngineError` if rollouts are not the student's, after the complete steps have
        been saved.
        """
        self._open()
        with self.progress.run(self.recipe.name, self.step, self.total_steps), self.interruption as interruption:
            try:
                self._evaluate_if_due(interruption)
                while self.step < self.total_steps:
                    self._train_step(interruption)
                    self._evaluate_if_due(interruption)
                    self._save_if_due()
                    interruption.agree(self.learner.reduce, self.processes.device)
            except (Interrupted, ServerUnavailable, EngineError):
                self.ledger.give_up()
                self._save()
                self.processes.wait_for_everyone()  # a launcher ends all processes soon after the first has ended
                raise
            finally:
                self.processes.end_training()
        return Result(self.directory, self.step, self.evaluated)

    def _train_step(self, interruption: Interruption) -> None:
        seed = fold(self.recipe.seed, self.step)
        statistics = StepStatistics()
        with interruption.welcome():
            decision = self._decide()
            mini_batches = self._sample(decision, seed)
            self.learner.fetch(mini_batches, seed)
        for rollouts in mini_batches:
            # Until the first update, a step that is given up leaves nothing behind.
            with interruption.welcome() if rollouts is mini_batches[0] else nullcontext():
                self.learner.accumulate(rollouts, seed, statistics)
            gradient_norm = self.learner.apply(self.step)
            statistics.add_rollouts(rollouts)
        statistics = statistics.reduced(self.learner.reduce, self.processes.device)
        self.controller.observe(statistics.evidence(self.step, decision.tokens))
        self.step += 1
        self._log(decision, statistics, gradient_norm)

    def _decide(self) -> Decision:
        """The first process's: a controller that looks at a clock, say, may decide otherwise on another."""
        first = self.processes.is_main_process
        return broadcast_object_list([self.controller.decide(self.step) if first else None])[0]

    def _sample(self, decision: Decision, seed: int) -> list[list[Rollout]]:
        """This process's share of the step's rollouts, in mini-batches: one for each optimiser step."""
        rollout, rank, ranks = self.recipe.rollout, self.processes.process_index, self.processes.num_processes
        prompts = self.order.at(self.step)
        size = self.recipe.training.mini_batch or len(prompts)
        shares = [prompts[start : start + size][rank::ranks] for start in range(0, len(prompts), size)]
        mine = [prompt for share in shares for prompt in share]
        with self.ledger.phase("rollout"), self.whole_to_decode():
            made = self.engine.sample(mine, decision.tokens, rollout.sampling, seed, rollout.samples)
        lengths = [len(prompt.ids) for prompt in mine]
        self.ledger.add("rollout", self.cost.generate([(len(r.prompt.ids), r.length) for r in made], lengths))
        self.ledger.add(
            prompt_tokens=sum(lengths),
            generated_tokens=sum(r.length for r in made),
            full_rollouts_tokens=sum(rollout.full_tokens if r.finish == "horizon" else r.length for r in made),
        )
        mini_batches, taken = [], 0
        for share in shares:
            mini_batches.append(made[taken : taken + len(share) * rollout.samples])
            taken += len(share) * rollout.samples
        return mini_batches

    def whole_to_decode(self) -> AbstractContextManager[None]:
        """Until the block ends, a sharded student is whole, if it is what the engine decodes with."""
        return nullcontext() if isinstance(self.engine, Delivery) else self.sharding.whole()

    # What surrounds the loop.

    def _engine(self) -> Engine:
        engine = build_engine(self.recipe, self.student)
        if isinstance(engine, NativeEngine):
            return engine
        dtype = torch.bfloat16 if self.recipe.training.precision == "bf16" else torch.float32
        return Delivery(engine, self.student, self.sharding, self.processes, dtype)

    def _sharding(self) -> Sharding:
        part, parts, reduce = self.processes.process_index, self.processes.num_processes, self._reduce
        if self.recipe.training.sharding == "none" or parts == 1:
            self.student.model.to(self.processes.device)
            return Sharding([], part, parts, reduce)
        bf16 = self.recipe.training.precision == "bf16"
        return shard(self.student, self.processes.device, part, parts, reduce, bf16)

    def _reduce(self, tensor: Tensor) -> Tensor:
        """Its sum over the processes."""
        return self.processes.reduce(tensor, reduction="sum")

    def _teacher(self, state: dict[str, Any]) -> Teacher:
        fingerprints = {name: torch.tensor(values) for name, values in state.get("fingerprints", {}).items()}
        return build_teacher(self.recipe, self.student, self.teachers, fingerprints)

    def _use_attention(self, saved: str | None) -> None:
        """The recipe's; or, where it says auto, the faster one, by a measurement that a resumed run does not repeat:
        it must go on with the same arithmetic. All processes take the first one's choice."""
        wanted = self.recipe.training.attention
        if wanted == "auto":
            longest = max(len(prompt.ids) for prompt in self.prompts.prompts) + self.recipe.rollout.full_tokens
            tokens = min(self.recipe.training.tokens_per_batch, longest * self.recipe.rollout.prompts)
            name, note = (saved, None) if saved else choose_attention(self.student, longest, tokens)
            name = broadcast_object_list([name])[0]
            self.notes += [note] if note else []
        else:
            name = {"sdpa": SDPA, "matmul": MATMUL}[wanted]
        for model in (self.student, *self.teachers.values()):
            if can_choose_attention(model):
                model.model.set_attn_implementation(name)
            elif wanted != "auto":
                raise RecipeError(
                    f"training.attention: {model.name} has an attention of its own ({attention_of(model)}); write auto"
                )

    def _evaluator(self) -> Evaluator | None:
        settings, rollout = self.recipe.evaluation, self.recipe.rollout
        if settings is None:
            return None
        prompts = build_prompts(settings.task, self.student.tokenizer, rollout.prompt_tokens, rollout.too_long)
        teacher, engine = self.teachers.get(None), self.engine if isinstance(self.engine, Delivery) else None
        return Evaluator(settings, prompts, self.student, rollout.full_tokens, self.processes, teacher, engine)

    def _open(self) -> None:
        """Brings the directory, the ledger and all state to the last checkpoint, or to the beginning."""
        state: dict[str, Any] | None = None
        if self._resumed:
            state = self._resumed.state
            self.step = self._resumed.step
            self.controller.load_state_dict(state["controller"])
            self.optimizer.load_state(self._resumed.optimizer())
        if self.processes.is_main_process:
            self.directory.create(self.recipe)
            self.directory.rewind(self.step, evaluated=state is not None and state["score"] is not None)
        self.processes.wait_for_everyone()
        self.evaluated = next(reversed(self.directory.read("evaluations")), None)
        self.ledger.resume(state["ledger"] if state else None)
        if self.recipe.trackers:
            self.processes.init_trackers(self.recipe.name)

    def _evaluate_if_due(self, interruption: Interruption) -> None:
        if not self._evaluation_is_due():
            return
        assert self.evaluator is not None
        with interruption.welcome(), self.ledger.phase("evaluation"), self.sharding.whole():
            measured, rollouts = self.evaluator.run()
        self.ledger.add(evaluated_tokens=measured.tokens)
        self._commit()
        run = self.ledger.run
        cost = {
            "training_flops": run.training_flops,
            "training_seconds": run.training_seconds,
            "generated_tokens": run.generated_tokens,
            "trained_tokens": run.trained_tokens,
        }
        self.evaluated = {"step": self.step, "score": measured.score} | cost | measured.as_dict()
        if not self.processes.is_main_process:
            return
        self.directory.append("evaluations", self.evaluated)
        self.directory.append("scores", {"step": self.step} | self.evaluator.scores_line(measured))
        for rollout in rollouts[:SAMPLES_KEPT]:
            self.directory.append("samples", {"step": self.step} | self.evaluator.sample_line(rollout))
        self.progress.note(f"step {self.step}: {measured.summary()}")
        self.processes.log({"evaluation/score": measured.score}, self.step)

    def _evaluation_is_due(self) -> bool:
        """At the start if asked, at the end, and between at the recipe's interval; not twice at one step."""
        settings, last = self.recipe.evaluation, self.evaluated
        if settings is None or (last and last["step"] == self.step):
            return False
        if self.step == 0:
            return settings.at_start
        if self.step == self.total_steps:
            return True
        if settings.every_flops is not None:
            before = last["training_flops"] if last else 0.0
            return self.ledger.run.training_flops // settings.every_flops > before // settings.every_flops
        return settings.every is not None and self.step % settings.every == 0

    def _log(self, decision: Decision, statistics: StepStatistics, gradient_norm: float) -> None:
        work = self._commit()
        metrics = {
            "step": self.step,
            "horizon": decision.tokens,
            "learning_rate": self.optimizer.learning_rate(self.step - 1),
            "gradient_norm": gradient_norm,
            **statistics.metrics(),
            "generated_tokens": work.generated_tokens,
            "trained_tokens": work.trained_tokens,
            "seconds": work.training_seconds,
            "flops": work.training_flops,
            **self.learner.served.metrics(),
            **(self.engine.metrics() if isinstance(self.engine, Delivery) else {}),
            "peak_memory": peak_memory(self.processes.device),
        }
        alarm = mismatch_alarm(self.recipe, self.step, metrics["mismatch"])
        if self.processes.is_main_process:
            self.directory.append("metrics", metrics | ({"alarm": alarm} if alarm else {}))
            self.directory.append("horizon", {"step": self.step, "tokens": decision.tokens, "reason": decision.reason})
            self.progress.step(metrics, decision, alarm)
        self.processes.log(metrics, self.step)

    def _commit(self) -> Account:
        return self.ledger.commit(self.learner.reduce, self.processes.device)

    def _save_if_due(self) -> None:
        if self.step == self.total_steps or self.step % self.recipe.checkpoint.every == 0:
            self._save()

    def _save(self) -> None:
        """A checkpoint of the complete steps, unless there is one."""
        directory, settings, last = self.directory.checkpoints, self.recipe.checkpoint, self.evaluated
        first = self.processes.is_main_process
        saved = first and any(found.step == self.step for found in checkpoints.find(directory))
        if broadcast_object_list([saved])[0]:
            return
        weights, moments = self.optimizer.master_state(self.student.model, first), self.optimizer.state(first)
        if not first:
            return
        checkpoints.save(
            directory,
            self.step,
            self.student.model,
            weights,
            self.student.tokenizer,
            moments,
            {
                "step": self.step,
                "score": last["score"] if last and last["step"] == self.step else None,
                "attention": attention_of(self.student),
                "fingerprints": self.learner.served.fingerprints(),
                "controller": self.controller.state_dict(),
                "ledger": self.ledger.state_dict(),
            },
        )
        checkpoints.prune(directory, settings.keep_last, settings.keep_best)


def check_same_checkpoint(step: int) -> None:
    """Raises `CheckpointError`, on every process, unless all of them go on from the same step."""
    steps = gather_object([step])
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the processes found checkpoints of different steps ({', '.join(map(str, sorted(set(steps))))}); "
            "output must be on a file system that all nodes share"
        )


def check_trackers(recipe: Recipe) -> None:
    """Raises `RecipeError` for a tracker whose package is not installed: accelerate would go on without it."""
    for tracker in recipe.trackers:
        if find_spec(tracker) is None:
            raise RecipeError(f"trackers: {tracker} is not installed: pip install 'hopd[{tracker}]'")

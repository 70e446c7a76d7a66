"""Makes the parts of a run, in an order that matters: weights first, then what computes with them.

The optimizer changes the student's precision, the attention is chosen for the precision that it then has, and
processes that share a model make each part together.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from torch import nn

from hopd.assembly.engine import build_engine
from hopd.assembly.evaluator import build_evaluator
from hopd.assembly.models import Models, load_models, load_saved
from hopd.assembly.parts import Parts
from hopd.assembly.prompts import build_prompts
from hopd.assembly.resumption import check_marks, rate_notes
from hopd.assembly.teacher import build_teacher
from hopd.compute.allocator import keep_freed_memory
from hopd.compute.attention import MATMUL, SDPA
from hopd.errors import CheckpointError, ModelError, RecipeError
from hopd.horizon import Controller
from hopd.model import LanguageModel
from hopd.model.attention_choice import attention_of, can_choose_attention, choose_attention
from hopd.model.flops import PassCost
from hopd.model.fsdp import shard
from hopd.processes import Processes
from hopd.recipe import AdaptersOff, NativeDecoding, Recipe
from hopd.rollout import Engine, NativeEngine, Stream, fold
from hopd.run.checkpointer import Checkpointer
from hopd.run.directory import RunDirectory
from hopd.run.drift import DriftAlarm
from hopd.run.interruption import Interruption
from hopd.run.ledger import Ledger
from hopd.run.marks import Marks
from hopd.run.mismatch import MismatchAlarm
from hopd.run.progress import Progress
from hopd.run.recorder import Recorder
from hopd.run.trackers import check_trackers
from hopd.teacher import Teacher
from hopd.training.averaging import WeightAverage
from hopd.training.flight import Flight
from hopd.training.learner import Learner
from hopd.training.mixture import Mixture
from hopd.training.optimizer import MasterOptimizer
from hopd.training.order import PromptOrder
from hopd.training.sketch import Sketch


class Replacements(TypedDict, total=False):
    """Names the options of `build`: objects that replace the recipe's, and how the run is started."""

    resume: bool | None
    accept_changes: bool
    overrides: Sequence[str]
    controller: Controller | None
    engine: Callable[[LanguageModel], Engine] | None
    teacher: Teacher | None
    progress: Progress | None
    clock: Callable[[], float]


def build(
    recipe: Recipe,
    *,
    resume: bool | None = False,
    accept_changes: bool = False,
    overrides: Sequence[str] = (),
    controller: Controller | None = None,
    engine: Callable[[LanguageModel], Engine] | None = None,
    teacher: Teacher | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Parts:
    """Loads what the recipe names. A `controller`, `engine` or `teacher` of your own is used in place of the recipe's,
    everywhere: the engine, made from the student by the function that is given, evaluates too, and the recipe's teacher
    is not loaded.

    `clock` is the ledger's: time.process_time counts the processor's seconds. `resume` is None where nothing is to be
    trained. A resumed run whose prompts or models are not those that it began with is refused, unless `accept_changes`.
    Raises a `HopdError`, with one sentence, for anything in the recipe or its data that cannot work.
    """
    check_trackers(recipe.trackers)
    directory = RunDirectory(recipe.directory)
    resumed = directory.latest_checkpoint(recipe, resume)
    state = resumed.state if resumed else {}
    processes = Processes.start()
    check_same_checkpoint(resumed.step if resumed else 0, processes)
    if processes.device.type == "cpu":
        keep_freed_memory()
    models = load_models(recipe, processes.device, resumed.path if resumed else None, teacher)
    student = models.student
    rollout, training = recipe.rollout, recipe.training
    prompts = build_prompts(recipe.task, student, rollout, models.teachers, recipe.own_prompts, trained=True)
    order = PromptOrder(prompts.prompts, rollout.prompts, recipe.seed, rollout.samples)
    total_steps = order.steps(training)
    mixture = Mixture(rollout.off_policy.share, recipe.seed) if rollout.off_policy else None
    flight = Flight(order, rollout.per_step, rollout.full_tokens, recipe.seed, processes, mixture)
    controller = controller or recipe.controller()

    sketch = _sketch(recipe, controller, models)  # before the student is sharded
    _place(student, recipe, processes)
    sampler = engine(student) if engine else build_engine(recipe, student, processes)
    own_rows = isinstance(sampler, NativeEngine) and engine is None  # the evaluation decodes more at once
    evaluator = build_evaluator(recipe, student, models.teachers.get(None), processes, None if own_rows else sampler)
    marks = Marks(recipe, prompts, evaluator.prompts if evaluator else None, teachers=teacher is None)
    notes = check_marks(state.get("marks", {}), marks, accept_changes, directory, processes)
    ledger = Ledger(directory.path / "ledger.json", processes.is_first, clock)
    optimizer = MasterOptimizer(student.model, training, total_steps)
    if resumed:
        notes += rate_notes(recipe, optimizer, resumed.step, directory)
    average = WeightAverage(student, optimizer, training.ema)
    if resumed and training.ema:
        average.load(dict(load_saved(recipe, resumed.average).model.named_parameters()), state["averaged_updates"])
    longest = max(len(prompt.ids) for prompt in prompts.prompts) + rollout.full_tokens
    attention = _use_attention(recipe, models, longest, state.get("attention"), processes)
    if training.gradient_checkpointing:
        student.checkpoint_activations()
    learner = Learner(
        student=student,
        teacher=teacher or build_teacher(recipe, student, models.teachers),
        student_cost=PassCost.of(student),
        teacher_costs=_teacher_costs(recipe, models),
        objective=recipe.objective,
        window=recipe.loss_window(),
        optimizer=optimizer,
        ledger=ledger,
        processes=processes,
        temperature=rollout.temperature,
        tokens_per_batch=training.tokens_per_batch,
        compares=getattr(controller, "compares", False),
        sketch=sketch,
    )
    learner.remote.restore(state.get("fingerprints", {}))
    drift = DriftAlarm.restored(state.get("drift"))
    saved: dict[str, Callable[[], Any]] = {
        "attention": lambda: attention_of(student),
        "fingerprints": learner.remote.fingerprints,
        "controller": controller.state_dict,
        "ledger": ledger.state_dict,
        "averaged_updates": lambda: average.updates,
        "flight": flight.state_dict,
        "drift": drift.state_dict,
        "marks": lambda: marks.all,
    }
    tensors = {"optimizer": optimizer.state, "flight": flight.state}
    several = training.mini_batch is not None
    keeps = (
        isinstance(rollout.engine, NativeDecoding) and rollout.engine.keys == "kept" and controller.decide(0).continues
    )
    mismatch = MismatchAlarm.of(
        rollout.engine.kind, training.precision, several, rollout.mismatch_alarm, keeps, corrects=mixture is None
    )
    progress = progress or Progress(quiet=not processes.is_first)
    return Parts(
        recipe=recipe,
        processes=processes,
        student=student,
        teachers=models.teachers,
        notes=models.notes + attention + notes,
        prompts=prompts,
        order=order,
        flight=flight,
        total_steps=total_steps,
        controller=controller,
        engine=sampler,
        sampling=rollout.sampling,
        learner=learner,
        average=average,
        evaluator=evaluator,
        ledger=ledger,
        directory=directory,
        checkpointer=Checkpointer(
            directory.checkpoints,
            recipe.checkpoint,
            total_steps,
            student,
            optimizer,
            average,
            tensors,
            saved,
            processes,
        ),
        recorder=Recorder(recipe.name, directory, ledger, mismatch, drift, progress, processes, recipe.trackers),
        interruption=Interruption(together=processes.size > 1),
        resumed=resumed,
        marks=marks,
        overrides=overrides,
    )


def check_same_checkpoint(step: int, processes: Processes) -> None:
    """Raises `CheckpointError`, on every process, unless all of them continue from the same step."""
    steps = processes.gather([step])
    if len(set(steps)) > 1:
        raise CheckpointError(
            f"the processes found checkpoints of different steps ({', '.join(map(str, sorted(set(steps))))}); "
            "output must be on a file system that all nodes share"
        )


def _sketch(recipe: Recipe, controller: Controller, models: Models) -> Sketch | None:
    """Returns what sketches gradients, if the controller asks for them. Where the student allows no sketches, a note
    says so, and the controller's evidence has no gradients."""
    if not getattr(controller, "sketches", False):
        return None
    try:
        return Sketch.of(models.student, recipe.rollout.full_tokens, fold(recipe.seed, Stream.SKETCH))
    except ModelError as error:
        models.notes.append(f"the controller asks for sketches of gradients and gets none: {error}")
        return None


def _place(student: LanguageModel, recipe: Recipe, processes: Processes) -> None:
    """Moves the student to its device, or shards it over the processes."""
    if recipe.training.sharding == "none" or processes.size == 1:
        nn.Module.to(student.model, processes.device)
    else:
        shard(student, processes, bf16=recipe.training.precision == "bf16")


def _use_attention(recipe: Recipe, models: Models, longest: int, saved: str | None, processes: Processes) -> list[str]:
    """Sets the recipe's attention, or the one that `choose_attention` gives, and returns notes on it. A resumed run
    keeps the arithmetic that it began with, and all processes take the first one's choice."""
    wanted, student, notes = recipe.training.attention, models.student, list[str]()
    if wanted == "auto":
        tokens = min(recipe.training.tokens_per_batch, longest * recipe.rollout.prompts)
        name, note = (saved, None) if saved else choose_attention(student, longest, tokens)
        name = processes.broadcast(name)
        notes += [note] if note else []
    else:
        name = {"sdpa": SDPA, "matmul": MATMUL}[wanted]
    for model in (student, *models.teachers.values()):
        if can_choose_attention(model):
            model.model.set_attn_implementation(name)
        elif wanted != "auto":
            raise RecipeError(
                f"training.attention: {model.name} has an attention of its own ({attention_of(model)}); write auto"
            )
    return notes


def _teacher_costs(recipe: Recipe, models: Models) -> dict[str | None, PassCost]:
    scoring = {None: models.student} if isinstance(recipe.teacher, AdaptersOff) else models.teachers
    return {name: PassCost.of(model) for name, model in scoring.items()}

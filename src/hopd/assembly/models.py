"""Loads the student and the local teachers of a recipe, and brings them to one vocabulary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hopd.errors import RecipeError
from hopd.model import LanguageModel, load
from hopd.model.adapters import NAME, add_adapters, describe_adapters, has_adapters, merge
from hopd.model.loading import can_be_copied, copied, resolve
from hopd.model.stop import Stop
from hopd.model.vocabulary import check_ends, share_vocabulary
from hopd.recipe import LoraSection, ModelSource, Recipe
from hopd.rollout import Stream, fold
from hopd.teacher import LocalTeacher, RoutedTeacher, Teacher


@dataclass
class Models:
    """Holds the student and the local teachers by name (None: the only one); there are none where the student's base
    teaches. `notes` are sentences that a person should read."""

    student: LanguageModel
    teachers: dict[str | None, LanguageModel]
    notes: list[str]


def load_models(
    recipe: Recipe, device: torch.device | str, checkpoint: Path | None = None, teacher: Teacher | None = None
) -> Models:
    """Loads the student in fp32, from `checkpoint` if there is one, and the local teachers in the precision of the
    recipe; with a `teacher` of the caller's own none of the recipe's. A student that is to be sharded stays on the CPU.

    All of them end where the recipe's `rollout.stop` says, too. Raises `ModelError` if one cannot be loaded, or if
    vocabularies differ, and `RecipeError` for an end that does not exist.
    """
    # What will be sharded may be too large, whole, for a GPU.
    place = "cpu" if recipe.training.sharding == "fsdp" else device
    student = load_saved(recipe, checkpoint, place) if checkpoint else load_source(recipe.student, place, torch.float32)
    precision = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    read = {} if checkpoint else {_key(recipe.student): student}
    teachers = _given(teacher, recipe) if teacher else _load_teachers(recipe, device, precision, read)
    notes = list(student.notes)
    if recipe.lora:
        _adapt(student, recipe.lora, fold(recipe.seed, Stream.ADAPTERS))
        notes += describe_adapters(student)
    elif has_adapters(student.model):
        merge(student)
    different = list({id(model): model for model in teachers.values()}.values())
    notes += [note for model in different for note in model.notes]
    end_at(recipe, student, *different)
    notes += share_vocabulary(student, different) + check_ends(student, _chats(recipe))
    return Models(student, teachers, notes)


def _load_teachers(
    recipe: Recipe, device: torch.device | str, dtype: torch.dtype, read: dict[tuple[object, ...], LanguageModel]
) -> dict[str | None, LanguageModel]:
    """Loads the recipe's local teachers by name. Those with the same weights are one model; one with those of the
    student, which `read` may hold as they were read, is a copy."""
    sources = recipe.sources
    made: dict[tuple[object, ...], LanguageModel] = {}
    for source in sources.values():
        if isinstance(source, ModelSource) and (key := _key(source)) not in made:
            same = read.get(key)
            made[key] = (
                copied(same, device, dtype)
                if same and can_be_copied(same, dtype)
                else load_source(source, device, dtype, quantised=True)
            )
    return {name: made[_key(source)] for name, source in sources.items() if isinstance(source, ModelSource)}


def _given(teacher: Teacher, recipe: Recipe) -> dict[str | None, LanguageModel]:
    return {name: each.model for name, each in local_by_name(teacher, recipe.rollout.temperature).items()}


def _key(source: ModelSource) -> tuple[object, ...]:
    """Returns the same for sections of a recipe that name the same weights."""
    return resolve(source.model).absolute(), tuple(source.layers or ()), source.trust_remote_code


def end_at(recipe: Recipe, student: LanguageModel, *teachers: LanguageModel) -> None:
    """Lets the models' answers end at the recipe's `rollout.stop` as well. Raises `RecipeError`."""
    for model in (student, *teachers):
        model.stop = Stop.of(recipe.rollout.stop, student.tokenizer)


def _chats(recipe: Recipe) -> bool:
    """Tells whether any of the recipe's prompts are chats."""
    tasks = [recipe.task, *([recipe.evaluation.task] if recipe.evaluation else [])]
    return any(getattr(task, "chat", False) for task in tasks)


def load_saved(recipe: Recipe, directory: Path, device: torch.device | str = "cpu") -> LanguageModel:
    """Loads the student, or its average, from a directory of a checkpoint, in fp32. Raises `ModelError`."""
    layers = recipe.student.layers if recipe.lora else None  # a base is as it came, all else as it was trained
    return load(str(directory), device=device, layers=layers, trust_remote_code=recipe.student.trust_remote_code)


def local_by_name(teacher: Teacher, temperature: float) -> dict[str | None, LocalTeacher]:
    """Returns the local teachers of one that is given; the name of an only one is None.

    Raises `RecipeError` if one scores at another `temperature` than rollouts are sampled at.
    """
    named: dict[str | None, Teacher] = {None: teacher}
    if isinstance(teacher, RoutedTeacher):
        named = dict(teacher.teachers.items())
    local = {name: each for name, each in named.items() if isinstance(each, LocalTeacher)}
    for each in local.values():
        if each.temperature != temperature:
            raise RecipeError(
                f"the teacher that is given scores at temperature {each.temperature:g}, and rollout.temperature is "
                f"{temperature:g}; write LocalTeacher(model, temperature={temperature:g})"
            )
    return local


def load_source(
    source: ModelSource, device: torch.device | str, dtype: torch.dtype = torch.float32, quantised: bool = False
) -> LanguageModel:
    """Loads the model that a section of the recipe names; `quantised` is as in `load`. Raises `ModelError`."""
    return load(
        source.model,
        dtype=dtype,
        device=device,
        layers=source.layers,
        trust_remote_code=source.trust_remote_code,
        quantised=quantised,
    )


def _adapt(student: LanguageModel, lora: LoraSection, seed: int) -> None:
    """Makes the adapters alone trainable: new ones, or those that the student came with."""
    if has_adapters(student.model):
        config: Any = student.model.peft_config[NAME]  # of LoRA, as `load` has checked
        if (config.r, config.lora_alpha) != (lora.rank, lora.alpha):
            raise RecipeError(
                f"{student.name} holds adapters of rank {config.r} and alpha {config.lora_alpha}; write the same in "
                f"lora, which says rank {lora.rank} and alpha {lora.alpha}"
            )
    else:
        add_adapters(student, lora.rank, lora.alpha, lora.targets, seed)
    for name, parameter in student.model.named_parameters():
        parameter.requires_grad_(".lora_" in name)

"""Loads the student and the local teachers of a recipe, and brings them to one vocabulary."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hopd.errors import RecipeError
from hopd.model import LanguageModel, load
from hopd.model.adapters import NAME, add_adapters, has_adapters, merge
from hopd.model.vocabulary import compare_vocabularies
from hopd.recipe import LoraSection, ModelSource, Recipe, TeacherSource
from hopd.rollout import Stream, fold
from hopd.teacher import LocalTeacher, Teacher


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

    Raises `ModelError` if one cannot be loaded, or if vocabularies differ.
    """
    # What will be sharded may be too large, whole, for a GPU.
    place = "cpu" if recipe.training.sharding == "fsdp" else device
    if checkpoint is not None:
        layers = recipe.student.layers if recipe.lora else None  # a base is as it came, all else as it was trained
        student = load(str(checkpoint), device=place, layers=layers, trust_remote_code=recipe.student.trust_remote_code)
    else:
        student = load_source(recipe.student, place, torch.float32)
    if recipe.lora:
        _adapt(student, recipe.lora, fold(recipe.seed, Stream.ADAPTERS))
    elif has_adapters(student.model):
        merge(student)
    precision = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    sources: dict[str | None, TeacherSource] = dict(recipe.teachers.items())
    if recipe.teacher:
        sources[None] = recipe.teacher
    local = {name: source for name, source in sources.items() if isinstance(source, ModelSource)}
    teachers: dict[str | None, LanguageModel] = {}
    if isinstance(teacher, LocalTeacher):
        teachers = {None: teacher.model} if teacher.model is not student else {}
    elif teacher is None:
        teachers = {name: load_source(source, device, precision) for name, source in local.items()}
    notes = [note for teacher in teachers.values() for note in compare_vocabularies(student, teacher)]
    shared = min(model.head.vocabulary for model in (student, *teachers.values()))
    for model in (student, *teachers.values()):
        if model.head.vocabulary > shared:
            notes.append(
                f"{model.name} has {model.head.vocabulary} output rows, of which the first {shared} are shared and used"
            )
            model.limit_vocabulary(shared)
    return Models(student, teachers, notes)


def load_source(source: ModelSource, device: torch.device | str, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Loads the model that a section of the recipe names. Raises `ModelError`."""
    return load(
        source.model,
        dtype=dtype,
        device=device,
        layers=source.layers,
        trust_remote_code=source.trust_remote_code,
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

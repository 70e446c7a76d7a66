"""Student and teachers of a recipe: loaded, and brought to one vocabulary."""

from dataclasses import dataclass
from pathlib import Path

import torch

from hopd.errors import ModelError, RecipeError
from hopd.lora import NAME, add_adapters, has_adapters, merge
from hopd.model import LanguageModel, load
from hopd.recipe import LoraSection, ModelSource, Recipe, TeacherSource
from hopd.rollout import fold

ADAPTERS = 4  # counter of the new adapters' weights, beside those of the rollouts


@dataclass
class Models:
    """`teachers` by name (`None` where there is only one), without those behind servers, and none where the student's
    base teaches; `notes` are sentences that a person should read."""

    student: LanguageModel
    teachers: dict[str | None, LanguageModel]
    notes: list[str]


def load_models(recipe: Recipe, device: torch.device | str, checkpoint: Path | None = None) -> Models:
    """The student in fp32, from `checkpoint` if there is one; teachers in the precision of the recipe. A student that
    is to be sharded stays on the CPU.

    Raises `ModelError` if one cannot be loaded, or if vocabularies differ.
    """
    # What will be sharded may be too large, whole, for a GPU.
    place = "cpu" if recipe.training.sharding == "fsdp" else device
    if checkpoint is not None:
        layers = recipe.student.layers if recipe.lora else None  # a base is as it came, all else as it was trained
        student = load(str(checkpoint), device=place, layers=layers, trust_remote_code=recipe.student.trust_remote_code)
    else:
        student = _load(recipe.student, place, torch.float32)
    if recipe.lora:
        _adapt(student, recipe.lora, fold(recipe.seed, ADAPTERS))
    elif has_adapters(student.model):
        merge(student)
    precision = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
    sources: dict[str | None, TeacherSource] = dict(recipe.teachers.items())
    if recipe.teacher:
        sources[None] = recipe.teacher
    local = {name: source for name, source in sources.items() if isinstance(source, ModelSource)}
    teachers = {name: _load(source, device, precision) for name, source in local.items()}
    notes = [note for teacher in teachers.values() for note in compare_vocabularies(student, teacher)]
    shared = min(model.head.vocabulary for model in (student, *teachers.values()))
    for model in (student, *teachers.values()):
        if model.head.vocabulary > shared:
            notes.append(
                f"{model.name} has {model.head.vocabulary} output rows, of which the first {shared} are shared and used"
            )
            model.limit_vocabulary(shared)
    return Models(student, teachers, notes)


def _load(source: ModelSource, device: torch.device | str, dtype: torch.dtype) -> LanguageModel:
    return load(
        source.model,
        dtype=dtype,
        device=device,
        layers=source.layers,
        trust_remote_code=source.trust_remote_code,
    )


def _adapt(student: LanguageModel, lora: LoraSection, seed: int) -> None:
    """Trainable are the adapters alone: new ones, or those that the student came with."""
    if has_adapters(student.model):
        config = student.model.peft_config[NAME]
        if (config.r, config.lora_alpha) != (lora.rank, lora.alpha):
            raise RecipeError(
                f"{student.name} holds adapters of rank {config.r} and alpha {config.lora_alpha}; write the same in "
                f"lora, which says rank {lora.rank} and alpha {lora.alpha}"
            )
    else:
        add_adapters(student, lora.rank, lora.alpha, lora.targets, seed)
    for name, parameter in student.model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def compare_vocabularies(student: LanguageModel, teacher: LanguageModel) -> list[str]:
    """Raises `ModelError` unless the same id means the same token to both; gives notes on what else differs.

    Compared are ids, not files: tokenizers that are written differently and agree are fine.
    """
    mine, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    name_of = {id: token for token, id in theirs.items()}
    conflicts = [
        (token, id) for token, id in mine.items() if theirs.get(token, id) != id or name_of.get(id, token) != token
    ]
    common = len(mine.keys() & theirs.keys())
    if conflicts or not common:
        token, id = min(conflicts, key=lambda pair: pair[1]) if conflicts else ("", 0)
        raise ModelError(
            f"student {student.name} and teacher {teacher.name} have unlike vocabularies: {len(conflicts)} of "
            f"{len(mine)} tokens differ, first id {id}: {token!r} to the student, {name_of.get(id)!r} to the teacher. "
            "Token ids go from one to the other as they are, so both must come from one tokenizer"
        )
    notes = []
    if only := sorted(mine.keys() ^ theirs.keys()):
        notes.append(f"{len(only)} tokens are in one vocabulary only ({', '.join(map(repr, only[:4]))})")
    if student.stop_ids != teacher.stop_ids:
        notes.append(
            f"the student stops on {sorted(student.stop_ids)}, the teacher {teacher.name} on "
            f"{sorted(teacher.stop_ids)}: a student that is taught another end forgets its own; watch the stop rate"
        )
    if not student.stop_ids:
        notes.append("the student has no end-of-sequence id: every rollout runs to its horizon")
    if student.tokenizer.bos_token_id != teacher.tokenizer.bos_token_id:
        notes.append(
            f"the student begins with id {student.tokenizer.bos_token_id}, the teacher with "
            f"{teacher.tokenizer.bos_token_id}; prompts are the student's"
        )
    return notes

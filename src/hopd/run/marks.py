"""Marks what a run began with, so that a resumed one notices if it finds something else: prompts, template, models.

A mark is a mapping of hashes, with what the recipe `says` of the thing: an evaluation of which it says something else
than before is another one, and not compared.
"""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from hopd.errors import ModelError
from hopd.model.loading import ADAPTERS, PACKAGE, resolve
from hopd.recipe import ModelSource, Recipe
from hopd.tasks import PromptSet

Mark = dict[str, Any]

WHOLE = 2**25  # bytes: longer files are hashed in part
PIECES, PIECE = 256, 2**12
KINDS = (".json", ".safetensors", ".gguf", ".jinja", ".model")  # of a model's files
OWN = ("state.json", "optimizer.safetensors", "flight.safetensors")  # files of a checkpoint that are no model's
UNKNOWN = "unknown"
DATE = "strftime_now"  # how a chat template asks for today's date


class Marks:
    """Marks what a recipe's run has before it: `prompts`, those of the `evaluation`, and the files of its models."""

    def __init__(self, recipe: Recipe, prompts: PromptSet, evaluation: PromptSet | None, teachers: bool = True):
        self.recipe, self.prompts, self.evaluation, self.teachers = recipe, prompts, evaluation, teachers

    @cached_property
    def all(self) -> dict[str, Mark]:
        """Returns every mark by the name of what it marks."""
        recipe = self.recipe
        marks = {"prompts": prompts_mark(self.prompts, recipe.task.model_dump(mode="json"), answers=False)}
        if recipe.evaluation and self.evaluation:
            task = recipe.evaluation.task.model_dump(mode="json")
            marks["evaluation prompts"] = prompts_mark(self.evaluation, task, answers=True)
        for name, theirs in self.prompts.teachers.items():
            says = recipe.task.model_dump(mode="json") | {"own": recipe.own_prompts[name].model_dump(mode="json")}
            marks[f"prompts of the teacher {name or ''}".rstrip()] = prompts_mark(theirs, says, answers=False)
        named = {"teacher": recipe.teacher, **{f"teacher {name}": each for name, each in recipe.teachers.items()}}
        sources = {"student": recipe.student, **(named if self.teachers else {})}
        for name, source in sources.items():
            if isinstance(source, ModelSource):
                marks[name] = {"says": source.model_dump(mode="json"), "files": files_hash(source.model)}
        return marks


def changes(before: Mapping[str, Mark], now: Mapping[str, Mark]) -> tuple[list[str], list[str]]:
    """Returns what changed since `before`, and what changes by itself from day to day, both in words."""
    changed, daily = list[str](), list[str]()
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if "files" in new and old["files"] != new["files"] and UNKNOWN not in (old["files"], new["files"]):
            changed.append(f"the files of the {name} ({str(new['says']['model'])[-80:]}) are others")
        elif "ids" in new and _read(old) != _read(new) and _says_the_same(old["says"], new["says"]):
            sentence = f"the {name} are others: {prompts_change(old, new)}"
            (daily if is_daily(old, new) else changed).append(sentence)
    return changed, daily


def prompts_mark(prompts: PromptSet, says: Any, answers: bool) -> Mark:
    """Marks prompts as they are in the task and as the model reads them, with the answers where they are checked."""
    texts, ids = sha256(), sha256()
    for prompt in prompts.prompts:
        problem = prompts.problems[prompt.id]
        asked = (prompt.id, problem.prompt, prompt.teacher, problem.answer if answers else None)
        learnt = () if prompt.reference is None else (problem.reference,)
        texts.update(json.dumps((*asked, *learnt), default=_kind).encode())
        ids.update(f"{prompt.id} {len(prompt.ids)} ".encode() + prompt.ids.long().numpy().tobytes())
        if prompt.reference is not None:
            ids.update(f"{len(prompt.reference)} ".encode() + prompt.reference.long().numpy().tobytes())
    template = str(prompts.tokenizer.chat_template)
    return {
        "says": says,
        "count": len(prompts.prompts),
        "texts": texts.hexdigest()[:16],
        "ids": ids.hexdigest()[:16],
        "template": sha256(template.encode()).hexdigest()[:16],
        "dated": DATE in template,
    }


def is_daily(before: Mark, now: Mark) -> bool:
    """Tells whether prompts differ by the date that their chat template writes, as far as marks can tell."""
    return bool(now["dated"]) and before["texts"] == now["texts"] and before["template"] == now["template"]


def prompts_change(before: Mark, now: Mark) -> str:
    """Says how two marks of prompts differ."""
    if is_daily(before, now):
        return f"their chat template writes the date ({DATE}), and it was rendered on different days"
    if before["count"] != now["count"]:
        return f"{before['count']} became {now['count']}"
    if before["texts"] != now["texts"]:
        return "their texts, answers or order differ"
    cause = "the chat template" if before["template"] != now["template"] else "the tokenizer or task.chat"
    return f"their texts are the same, but {cause} differs"


def files_hash(source: str) -> str:
    """Returns a hash of a model's files: of long ones, of their size and of pieces all over them; `UNKNOWN` where there
    are none any more, or none yet in the hub's cache."""
    try:
        path = resolve(source)
    except ModelError:
        return UNKNOWN
    if not path.exists() and not source.startswith(PACKAGE):
        cached = try_to_load_from_cache(source, "config.json")
        path = Path(cached).parent if isinstance(cached, str) else path
    found, files = sha256(), sorted(path.iterdir()) if path.is_dir() else [path] * path.is_file()
    for file in files:
        if file.suffix in KINDS and file.name not in OWN and file.is_file():
            found.update(f"{file.name} {file.stat().st_size} ".encode())
            _hash(file, found.update)
    if (path / ADAPTERS).is_file():
        base = json.loads((path / ADAPTERS).read_text(encoding="utf-8")).get("base_model_name_or_path")
        found.update(files_hash(str(base)).encode())
    return found.hexdigest()[:16] if files else UNKNOWN


def _hash(file: Path, update: Callable[[bytes], None]) -> None:
    size = file.stat().st_size
    with file.open("rb") as content:
        if size <= WHOLE:
            update(content.read())
            return
        for piece in range(PIECES):
            content.seek(piece * (size - PIECE) // (PIECES - 1))
            update(content.read(PIECE))


def _read(mark: Mark) -> tuple[str, str]:
    return mark["texts"], mark["ids"]


def _says_the_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Compares what recipes say by the keys of both: another version of hopd may have more."""
    return all(before[key] == now[key] for key in before.keys() & now.keys())


def _kind(value: object) -> str:
    """Stands for an object of a task of your own, whose text may hold its address."""
    return type(value).__name__

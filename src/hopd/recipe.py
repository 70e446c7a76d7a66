"""The typed configuration of a run. The only place that knows YAML.

A recipe is checked as a whole before anything is loaded: an unknown key is an error with the nearest name, and every
value has a range.
"""

import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from hopd import horizon as horizons
from hopd import plugin
from hopd.errors import RecipeError, nearest
from hopd.objective.objective import Objective
from hopd.rollout.sampling import Sampling
from hopd.sources import (
    ENGINE_KINDS,
    TEACHER_KINDS,
    AdaptersOff,
    Decoding,
    LoraSection,
    ModelSource,
    NativeDecoding,
    Section,
    TeacherSource,
)


class _TaskSource(Section):
    chat: bool = False


class AdditionSource(_TaskSource):
    """The quickstart task: repeated addition with a scratchpad."""

    source: Literal["addition"]
    steps: int = Field(12, ge=1, le=26)
    size: int = Field(8192, ge=1, le=90_000)
    seed: int = 0
    held_out: bool = False


class FileSource(_TaskSource):
    """Prompts from a .jsonl or .parquet file, or a `datasets` directory or hub name."""

    source: Literal["file"]
    path: str
    prompt: str = "prompt"
    answer: str | None = None
    check: str = "math"
    split: str = "train"
    teacher: str | None = None
    limit: int | None = Field(None, ge=1)


class GymSource(_TaskSource):
    """A reasoning-gym dataset, by name."""

    source: Literal["reasoning_gym"]
    name: str
    size: int = Field(ge=1)
    seed: int = 0
    options: dict[str, Any] = {}


class PluginSource(_TaskSource):
    """A task of your own, `source: my.module:Name`, a class with `problems` and `score` (`hopd.tasks.Task`). Its
    options are the other keys."""

    model_config = ConfigDict(extra="allow")

    source: str = Field(pattern=":")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known_options(self) -> "PluginSource":
        plugin.check_options(plugin.load_class(self.source, "task.source"), self.options, f"task '{self.source}'")
        return self


TASKS: dict[str, type[Section]] = {
    "addition": AdditionSource,
    "file": FileSource,
    "reasoning_gym": GymSource,
}


def _task_kind(source: Any) -> str | None:
    name = source.get("source") if isinstance(source, Mapping) else getattr(source, "source", None)
    if plugin.is_plugin(name):
        return "<task plug-in>"
    return f"<task {name}>" if isinstance(name, str) and name in TASKS else None


TaskSource = Annotated[
    Annotated[AdditionSource, Tag("<task addition>")]
    | Annotated[FileSource, Tag("<task file>")]
    | Annotated[GymSource, Tag("<task reasoning_gym>")]
    | Annotated[PluginSource, Tag("<task plug-in>")],
    Discriminator(
        _task_kind,
        custom_error_type="unknown_kind",
        custom_error_message="Unknown kind",
        custom_error_context={"key": "source", "known": " ".join(TASKS)},
    ),
]
# The kinds of task, teacher and engine stand as tags in the location of an error, though nobody wrote them as keys.
KINDS = {f"<task {name}>": section for name, section in TASKS.items()} | TEACHER_KINDS | ENGINE_KINDS


class RolloutSection(Section):
    """A step samples `samples` rollouts of each of `prompts` prompts. `mismatch_alarm`: nats a token by which engine
    and learner may differ before the run says so; by default what rounding explains in the training's precision."""

    engine: Decoding = NativeDecoding()
    prompts: int = Field(ge=1)
    samples: int = Field(1, ge=1)
    full_tokens: int = Field(ge=1)
    prompt_tokens: int = Field(1024, ge=1)
    too_long: Literal["drop", "error"] = "drop"
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    rows: int = Field(64, ge=1)
    mismatch_alarm: float | None = Field(None, gt=0)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k)

    @model_validator(mode="after")
    def _known_log_probs(self) -> "RolloutSection":
        cut = self.top_p < 1 or self.top_k > 0
        if self.engine.kind != "native" and cut and self.temperature != 1:
            raise RecipeError(
                "rollout: vLLM gives log-probs before the temperature or after the cut, and training needs those "
                "between; write temperature: 1, or no top_p and top_k, or engine: {kind: native}"
            )
        return self


_Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingSection(Section):
    """`steps` or `epochs`. `mini_batch` prompts make one optimiser step (all of the rollout's, if it is not given)."""

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    mini_batch: int | None = Field(None, ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    tokens_per_batch: int = Field(8192, ge=1)
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    attention: Literal["auto", "sdpa", "matmul"] = "auto"

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSection":
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError("training needs either steps or epochs: write steps: 200, or epochs: 2")
        return self


class EvaluationSection(Section):
    """On `task`, always to the full length. Every `every` steps or every `every_flops` of training, and at the end."""

    task: TaskSource
    every: int | None = Field(None, ge=1)
    every_flops: float | None = Field(None, gt=0)
    at_start: bool = True
    measure: Literal["accuracy", "divergence"] = "accuracy"
    samples: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    rows: int = Field(128, ge=1)
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k)

    @model_validator(mode="after")
    def _one_interval(self) -> "EvaluationSection":
        if self.every is not None and self.every_flops is not None:
            raise RecipeError("evaluation takes every (steps) or every_flops, not both")
        if self.temperature == 0 and self.samples > 1:
            raise RecipeError("evaluation at temperature 0 is greedy: more than one sample would repeat the first")
        return self


class CheckpointSection(Section):
    """Every `every` steps, and at the end. `keep_best` keeps the one with the best evaluation besides the last ones."""

    every: int = Field(50, ge=1)
    keep_last: int = Field(2, ge=1)
    keep_best: bool = False


class Recipe(Section):
    """A whole run. `Recipe.load(path)` reads one; errors are `RecipeError`, a sentence each."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = 0
    output: str = "runs"
    student: ModelSource
    teacher: TeacherSource | None = None
    teachers: dict[str, TeacherSource] = {}
    task: TaskSource
    rollout: RolloutSection
    horizon: dict[str, Any]
    window: dict[str, Any] = {"kind": "whole"}
    objective: Objective = Objective()
    training: TrainingSection
    lora: LoraSection | None = None
    evaluation: EvaluationSection | None = None
    checkpoint: CheckpointSection = CheckpointSection()
    trackers: list[Literal["trackio", "wandb", "tensorboard"]] = []

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.teacher is None) == (not self.teachers):
            raise RecipeError("a recipe has either one teacher, or teachers by name")
        if self.teachers and not (isinstance(self.task, FileSource) and self.task.teacher):
            raise RecipeError("with several teachers, task.teacher must name the column that says which one")
        if self.teacher and isinstance(self.task, FileSource) and self.task.teacher:
            raise RecipeError("task.teacher names a column of teachers, and there is only one: write teachers: {…}")
        if isinstance(self.teacher, AdaptersOff) and self.lora is None:
            raise RecipeError(
                "teacher.adapter_disabled is the student without adapters, and it has none: write lora: {}"
            )
        self.controller()
        self.loss_window()
        mini_batch = self.training.mini_batch
        if mini_batch is not None and self.rollout.prompts % mini_batch:
            raise RecipeError(
                f"training.mini_batch must divide rollout.prompts = {self.rollout.prompts}, got {mini_batch}"
            )
        return self

    def controller(self) -> horizons.Controller:
        return horizons.build(self.horizon, full_tokens=self.rollout.full_tokens)

    def loss_window(self) -> horizons.Window:
        return horizons.build_window(self.window)

    @property
    def directory(self) -> Path:
        return Path(self.output) / self.name

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """From a YAML file, with `overrides` such as `training.steps=10` or `horizon={controller: full}`."""
        path = Path(path)
        if not path.is_file():
            raise RecipeError(f"no recipe at {path} (looked in {Path.cwd()})")
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise RecipeError(
                f"{path} must hold a mapping with name, student, teacher, …; got {type(content).__name__}"
            )
        for override in overrides:
            _override(content, override)
        return cls.parse(content, where=str(path))

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = "recipe") -> "Recipe":
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise RecipeError(f"{where}: " + "; ".join(_sentences(error))) from error
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error

    def with_changes(self, **sections: Any) -> "Recipe":
        """A copy with some sections replaced, checked anew."""
        return Recipe.parse(self.model_dump() | sections)

    def yaml(self) -> str:
        """The resolved recipe: every default written out."""
        # The horizon keeps its Python types: the steps of a staged one are numbers, which JSON would turn into text.
        content = self.model_dump(mode="json") | {"horizon": dict(self.horizon)}
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _override(content: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise RecipeError(f"an override is written key=value, for example training.steps=10; got {text!r}")
    *sections, key = path.strip().split(".")
    for section in sections:
        inner = content.get(section) or {}
        if not isinstance(inner, dict):
            raise RecipeError(f"override {text!r}: {section} is no section of the recipe")
        content[section] = content = dict(inner)  # a copy: an anchor may have put the same section elsewhere
    try:
        content[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"override {text!r}: the value is not YAML") from error


def _sentences(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        keys = [str(part) for part in problem["loc"] if not str(part).startswith("<")]
        path = ".".join(keys) or "the recipe"
        if problem["type"] == "extra_forbidden" or problem["type"] == "unexpected_keyword_argument":
            *sections, key = problem["loc"]
            yield f"unknown key {path}{nearest(str(key), _keys_at(sections))}"
        elif problem["type"] == "missing":
            yield f"{path} is missing"
        elif problem["type"] == "unknown_kind":
            key, known = problem["ctx"]["key"], problem["ctx"]["known"].split()
            given = problem["input"].get(key) if isinstance(problem["input"], Mapping) else problem["input"]
            yield f"{path}.{key} {plugin.must_be(given, known)}"
        else:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            yield f"{path}: {message}, got {problem['input']!r}"


def _keys_at(loc: Sequence[Any]) -> list[str]:
    """The keys that a section at this place may have."""
    sections: list[Any] = [Recipe]
    for part in loc:
        inner = [_fields(s)[part] for s in sections if part in _fields(s)]
        tagged = [KINDS[part]] if part in KINDS else []
        sections = tagged or [s for annotation in inner for s in _sections(annotation)] or sections
    return [key for section in sections for key in _fields(section)]


def _fields(section: Any) -> Mapping[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(section).items() if typing.get_origin(hint) != ClassVar}


def _sections(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and (issubclass(annotation, Section) or annotation is Objective):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _sections(argument)

"""Describes a run as one typed value, which is checked as a whole before any model or data is loaded.

An unknown key is an error with the nearest name, and every value has a range. It reads YAML and loads no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic.functional_validators import ModelWrapValidatorHandler

from hopd import horizon as horizons
from hopd.errors import RecipeError, missing_target, shown
from hopd.objective.objective import Full
from hopd.plugin import Plugin, find_beside
from hopd.recipe.choices import Horizon, Objective, Window
from hopd.recipe.document import check_plain, read_yaml
from hopd.recipe.models import AdaptersOff, LoraSection, ModelSource, OwnPrompt, TeacherSource
from hopd.recipe.overrides import override
from hopd.recipe.plugins import named_code
from hopd.recipe.section import Section
from hopd.recipe.sections import CheckpointSection, EvaluationSection, RolloutSection, TrainingSection
from hopd.recipe.sentences import joined, sentences
from hopd.recipe.tasks import FileSource, TaskSource


class Recipe(Section):
    """Describes a whole run. `Recipe.load(path)` reads one; `Recipe(name=..., ...)` takes values, sections or mappings.

    Raises `RecipeError` with one sentence for each mistake.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = 0
    output: str = "runs"
    student: ModelSource
    teacher: TeacherSource | None = None
    teachers: dict[str, TeacherSource] = {}
    task: TaskSource
    rollout: RolloutSection
    horizon: Horizon
    window: Window = horizons.Whole()
    objective: Objective = Full()
    training: TrainingSection
    lora: LoraSection | None = None
    evaluation: EvaluationSection | None = None
    checkpoint: CheckpointSection = CheckpointSection()
    trackers: list[Literal["trackio", "wandb", "tensorboard"]] = []

    @model_validator(mode="wrap")
    @classmethod
    def _in_sentences(cls, content: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        check_plain(content)
        try:
            return read(content)
        except ValidationError as error:
            raise RecipeError(joined(sentences(error, cls))) from error

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.teacher is None) == (not self.teachers):
            raise RecipeError(
                "a recipe has either one teacher, or several teachers by name: write teacher: {…}, or teachers: {…}"
            )
        if self.teachers and not (isinstance(self.task, FileSource) and self.task.teacher):
            raise RecipeError("with several teachers, task.teacher must name the column with each prompt's teacher")
        if self.teacher and isinstance(self.task, FileSource) and self.task.teacher:
            raise RecipeError("task.teacher names a column of teachers, and there is only one: write teachers: {…}")
        if isinstance(self.teacher, AdaptersOff) and self.lora is None:
            raise RecipeError(
                "teacher.adapter_disabled is the student without adapters, and it has none: write lora: {}"
            )
        if rendered := [name for name, own in self.own_prompts.items() if own.renders and not self.task.chat]:
            raise RecipeError(
                f"{f'teachers.{rendered[0]}' if rendered[0] else 'teacher'} has template or system, which are for the "
                "chat template; write chat: true in task"
            )
        mini_batch = self.training.mini_batch
        if mini_batch is not None and self.rollout.prompts % mini_batch:
            raise RecipeError(
                f"training.mini_batch must divide rollout.prompts = {self.rollout.prompts}, got {mini_batch}"
            )
        if mini_batch is not None and getattr(self.horizon, "continues", False):
            raise RecipeError(
                "with horizon.continue as many rollouts are trained on as end in a step; write no training.mini_batch"
            )
        whole, rollouts = (getattr(self.horizon, option, None) for option in ("whole", "rollouts"))
        if whole is not None and whole > (rollouts or self.rollout.per_step):
            raise RecipeError(
                f"horizon.whole must be at most the {self.rollout.per_step} rollouts of a step (rollout.prompts × "
                f"rollout.samples), got {whole}; write horizon.rollouts for more"
            )
        if self.rollout.off_policy:
            self.rollout.off_policy.check(self.task, self.objective, self.horizon)
        return self

    @property
    def sources(self) -> dict[str | None, TeacherSource]:
        """Returns the teachers by name; the name of an only one is None."""
        return {None: self.teacher} if self.teacher else dict(self.teachers.items())

    @property
    def own_prompts(self) -> dict[str | None, OwnPrompt]:
        """Returns the teachers that read prompts of their own, by name."""
        return {name: each for name, each in self.sources.items() if isinstance(each, OwnPrompt) and each.has_own}

    def controller(self) -> horizons.Controller:
        """Returns the horizon's controller, built anew at each call: it may have a state."""
        spec = self.horizon.spec("controller") if isinstance(self.horizon, Plugin) else horizons.describe(self.horizon)
        return horizons.build(spec, self.rollout.full_tokens, self.rollout.per_step)

    def loss_window(self) -> horizons.Window:
        """Returns the loss window; a plug-in is built anew at each call."""
        return horizons.build_window(self.window.spec("kind")) if isinstance(self.window, Plugin) else self.window

    @property
    def directory(self) -> Path:
        """Returns the run's directory, `output/name`."""
        return Path(self.output) / self.name

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), imports: bool = True) -> "Recipe":
        """Reads a YAML file and applies `overrides` such as `training.steps=10` or `horizon={controller: full}`.

        Code of your own, module:Name, is imported now, unless `imports` is false: then nothing is known of it but its
        name, and the recipe can be looked at and not run. It is found beside the recipe too.

        Raises `RecipeError` if there is no such file, or if its content is not a valid recipe.
        """
        path = Path(path)
        content = _content(path, overrides)
        for key, name in named_code(content):
            find_beside(name, path.absolute().parent, key)
        return cls.parse(content, where=str(path), imports=imports)

    @staticmethod
    def directory_of(path: str | Path, overrides: Sequence[str] = ()) -> Path:
        """Returns the run's directory without reading the rest of a recipe. Raises `RecipeError` if there is none."""
        content = _content(Path(path), overrides)
        return Path(str(content.get("output", "runs"))) / str(content.get("name"))

    @classmethod
    def parse(cls, content: Mapping[str, Any], where: str = "recipe", imports: bool = True) -> "Recipe":
        """Makes a recipe from a mapping. Raises `RecipeError` whose sentences begin with `where`."""
        try:
            return cls.model_validate(content, context={"imports": imports})
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error

    def unsharded(self) -> "Recipe":
        """Returns a copy for one process, whose student lies whole on its device."""
        return self.with_changes(training=self.training.model_dump() | {"sharding": "none"})

    def with_changes(self, **sections: Any) -> "Recipe":
        """Returns a copy with some sections replaced, checked as a whole. Raises `RecipeError`."""
        return Recipe.parse(self.model_dump() | sections)

    def yaml(self) -> str:
        """Returns the resolved recipe as YAML, with every default written out."""
        # Python's types, not JSON's: JSON would turn the steps of a staged horizon, which are integer keys, into text.
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def _content(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise RecipeError(missing_target(path) or f"no recipe at {path} (looked in {Path.cwd()})")
        content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not YAML: {error.reason} at byte {error.start}, and a recipe is UTF-8") from error
    except OSError as error:
        raise RecipeError(f"the recipe {shown(str(path))} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping with name, student, teacher, …; got {type(content).__name__}")
    for text in overrides:
        override(content, text)
    return content

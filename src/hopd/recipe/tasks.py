"""Describes the source of a recipe's prompts: a built-in task, a file, a reasoning-gym dataset, or a plug-in."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator

from hopd import plugin
from hopd.errors import RecipeError
from hopd.recipe.section import PluginSection, Section, kind_named_by, may_import


class _TaskSource(Section):
    chat: bool = False


class AdditionSource(_TaskSource):
    """Selects the quickstart task: `steps` additions in a row, with a scratchpad. `size` is the number of problems."""

    source: Literal["addition"]
    steps: int = Field(12, ge=1, le=26)
    size: int = Field(8192, ge=1, le=90_000)
    seed: int = 0
    held_out: bool = False


class FileSource(_TaskSource):
    """Reads prompts from a .jsonl or .parquet file, or from a `datasets` directory or hub dataset.

    `prompt`, `answer` and `teacher` are names of columns; `limit` keeps the first prompts only. Checking an answer may
    take `check_seconds`: by default two seconds for `check: math`, ten for a check of your own.
    """

    source: Literal["file"]
    path: str
    prompt: str = "prompt"
    answer: str | None = None
    check: str = "math"
    split: str = "train"
    teacher: str | None = None
    limit: int | None = Field(None, ge=1)
    check_seconds: float | None = Field(None, gt=0)

    @field_validator("check")
    @classmethod
    def _known_check(cls, name: str, info: ValidationInfo) -> str:
        if plugin.is_plugin(name):
            if may_import(info):
                plugin.load_function(name, "check", ("response", "answer"))
        elif name not in ("math", "exact"):
            raise RecipeError(f"check must be one of math, exact, or module:function; got {name!r}")
        return name


class GymSource(_TaskSource):
    """Names a reasoning-gym dataset with `size` problems and its own `options`."""

    source: Literal["reasoning_gym"]
    name: str
    size: int = Field(ge=1)
    seed: int = 0
    options: dict[str, Any] = {}


class TaskPlugin(PluginSection):
    """Names a task class of your own, with `problems` and `score` (`hopd.tasks.Task`)."""

    where: ClassVar[str] = "task"
    needs: ClassVar[tuple[str, ...]] = ("problems", "score")

    chat: bool = False


TaskSource = Annotated[
    Annotated[AdditionSource, Tag("<source addition>")]
    | Annotated[FileSource, Tag("<source file>")]
    | Annotated[GymSource, Tag("<source reasoning_gym>")]
    | Annotated[TaskPlugin, Tag("<source plug-in>")],
    kind_named_by("source", ("addition", "file", "reasoning_gym")),
]

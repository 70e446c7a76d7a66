"""Describes the source of a recipe's prompts: a built-in task, a file, a reasoning-gym dataset, or a plug-in."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, Tag, ValidationInfo, field_validator, model_validator

from hopd import plugin
from hopd.errors import RecipeError, shown
from hopd.recipe.section import PluginSection, Section, kind_named_by, may_import
from hopd.recipe.sentences import as_pydantic

# Arguments of the rendering itself, which are no variables of the template.
RENDERING = {
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
}


def _flow(options: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(options), default_flow_style=True, width=1000).strip()[:160]


class _TaskSource(Section):
    """Renders prompts with the chat template if `chat`: `template` are variables that it reads, and `system` is the
    system message of prompts that have none."""

    chat: bool = False
    template: dict[str, Any] = {}
    system: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _chat_is_a_switch(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and isinstance(options := content.get("chat"), Mapping):
            raise as_pydantic(
                RecipeError(f"task.chat is true or false; write chat: true, and template: {_flow(options)}")
            )
        return content

    @model_validator(mode="after")
    def _template_is_of_a_chat(self) -> Self:
        if given := [name for name in ("template", "system") if getattr(self, name) not in ({}, None)]:
            if not self.chat:
                raise as_pydantic(RecipeError(f"task.{given[0]} is for the chat template; write chat: true beside it"))
            if taken := RENDERING.intersection(self.template):
                raise as_pydantic(
                    RecipeError(f"task.template.{min(taken)} is set by hopd; template holds variables of the template")
                )
        return self


class AdditionSource(_TaskSource):
    """Selects the quickstart task: `steps` additions in a row, with a scratchpad. `size` is the number of problems."""

    source: Literal["addition"]
    steps: int = Field(12, ge=1, le=26)
    size: int = Field(8192, ge=1, le=90_000)
    seed: int = 0
    held_out: bool = False


class FileSource(_TaskSource):
    """Reads prompts from a .jsonl or .parquet file, or from a `datasets` directory or hub dataset.

    `prompt`, `answer` and `teacher` are names of columns, or paths into them such as `extra_info.question`. `filter`
    names a function of your own: called with a row, it returns whether the row is used. `unique` keeps each prompt
    once, and `limit` the first prompts of what is left. `config` names a part of a data set. Checking an answer may
    take `check_seconds`: by default two seconds for `check: math`, ten for a check of your own.
    """

    source: Literal["file"]
    path: str
    prompt: str = "prompt"
    answer: str | None = None
    check: str = "math"
    split: str = "train"
    config: str | None = None
    teacher: str | None = None
    filter: str | None = None
    unique: bool = False
    limit: int | None = Field(None, ge=1)
    check_seconds: float | None = Field(None, gt=0)

    @field_validator("check")
    @classmethod
    def _known_check(cls, name: str, info: ValidationInfo) -> str:
        if plugin.is_plugin(name):
            if may_import(info):
                plugin.load_function(name, "check", ("response", "answer"))
        elif name not in ("math", "exact"):
            raise RecipeError(f"check must be one of math, exact, or module:function; got {shown(name)}")
        return name

    @field_validator("filter")
    @classmethod
    def _known_filter(cls, name: str | None, info: ValidationInfo) -> str | None:
        if name is not None and not plugin.is_plugin(name):
            raise RecipeError(f"task.filter is a function of your own, module:function; got {shown(name)}")
        if name is not None and may_import(info):
            plugin.load_function(name, "filter", ("row",))
        return name

    @model_validator(mode="after")
    def _config_of_a_data_set(self) -> Self:
        if self.config is not None and self.path.endswith((".jsonl", ".parquet", ".json")):
            raise as_pydantic(
                RecipeError(f"task.config names a part of a data set, and {self.path} is one file; remove config")
            )
        return self


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

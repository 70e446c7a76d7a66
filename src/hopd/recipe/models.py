"""Describes the source of a recipe's models: a directory or hub, the student's own base, servers, or a plug-in."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from hopd.errors import RecipeError
from hopd.recipe.section import PluginSection, Section
from hopd.recipe.sentences import as_pydantic
from hopd.recipe.servers import Servers
from hopd.recipe.tasks import RENDERING


class ModelSource(Section):
    """Names a directory, a hub model, or `package:NAME/PATH`. `layers` keeps only these decoder layers."""

    model: str
    layers: list[int] | None = None
    trust_remote_code: bool = False


class OwnPrompt(Section):
    """Lets a teacher read another prompt than the student: the text or messages in the column `prompt`, or the
    student's own, rendered with more variables of the chat `template` and another `system` message than the task's."""

    prompt: str | None = Field(None, min_length=1)
    template: dict[str, Any] = {}
    system: str | None = None

    @property
    def has_own(self) -> bool:
        """Tells whether the prompt is another one than the student's."""
        return self.prompt is not None or self.renders

    @property
    def renders(self) -> bool:
        """Tells whether the chat template renders it with something else."""
        return bool(self.template) or self.system is not None

    @model_validator(mode="after")
    def _free_variables(self) -> Self:
        if taken := RENDERING.intersection(self.template):
            raise as_pydantic(
                RecipeError(f"teacher.template.{min(taken)} is set by hopd; template holds variables of the template")
            )
        return self


class TeacherModel(ModelSource, OwnPrompt):
    """Names the model of a local teacher, and what it reads."""


class AdaptersOff(OwnPrompt):
    """Uses the student with its adapters switched off as the teacher, which needs no second copy of the weights."""

    adapter_disabled: Literal[True]


class ServerSource(Servers, OwnPrompt):
    """Names a remote teacher. One request carries up to `sequences` sequences."""

    where: ClassVar[str] = "teacher"

    model: str
    sequences: int = Field(16, ge=1)


class TeacherPlugin(PluginSection):
    """Names a teacher class of your own, with `gives` and `score(batch)` (`hopd.teacher.Teacher`).

    Its constructor receives the `student` and the rollout's `temperature` if it has parameters of these names.
    """

    where: ClassVar[str] = "teacher"
    given: ClassVar[tuple[str, ...]] = ("student", "temperature")
    needs: ClassVar[tuple[str, ...]] = ("gives", "score")


def _kind(source: Any) -> str:
    """Returns the union tag of a teacher: each kind has one key that no other kind has."""
    keys = source if isinstance(source, Mapping) else getattr(type(source), "model_fields", ())
    kinds = {"server": "<server>", "adapter_disabled": "<base>", "source": "<plug-in>"}
    return next((tag for key, tag in kinds.items() if key in keys), "<model>")


def _of_a_model(source: Any) -> Any:
    """Makes a teacher of a model alone, as Python's users name one."""
    return TeacherModel(**source.model_dump()) if type(source) is ModelSource else source


TeacherSource = Annotated[
    Annotated[TeacherModel, Tag("<model>")]
    | Annotated[AdaptersOff, Tag("<base>")]
    | Annotated[ServerSource, Tag("<server>")]
    | Annotated[TeacherPlugin, Tag("<plug-in>")],
    Discriminator(_kind),
    BeforeValidator(_of_a_model),
]


class LoraSection(Section):
    """Adds adapters of rank `rank`, scaled by alpha / rank, to all linear layers or to the named ones."""

    rank: int = Field(16, ge=1, le=65_536)
    alpha: int = Field(32, ge=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"

"""Where the models of a recipe come from: a directory or hub, the student's own base, servers, a class of your own."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from hopd.recipe.section import PluginSection, Section
from hopd.recipe.servers import Servers


class ModelSource(Section):
    """A directory, a hub name, or `package:NAME/PATH`; `layers` keeps those decoder layers only."""

    model: str
    layers: list[int] | None = None
    trust_remote_code: bool = False


class AdaptersOff(Section):
    """The student with its adapters switched off: no second copy of the weights."""

    adapter_disabled: Literal[True]


class ServerSource(Servers):
    """A teacher that servers hold. A request takes up to `sequences` sequences."""

    where: ClassVar[str] = "teacher"

    model: str
    sequences: int = Field(16, ge=1)


class TeacherPlugin(PluginSection):
    """A teacher of your own: a class with `gives` and `score(batch)` (`hopd.teacher.Teacher`). Its constructor is given
    the `student` and the rollout's `temperature`, if it has parameters of these names."""

    where: ClassVar[str] = "teacher"
    given: ClassVar[tuple[str, ...]] = ("student", "temperature")
    needs: ClassVar[tuple[str, ...]] = ("gives", "score")


def _kind(source: Any) -> str:
    """Each kind has a key of its own."""
    keys = source if isinstance(source, Mapping) else getattr(type(source), "model_fields", ())
    kinds = {"server": "<server>", "adapter_disabled": "<base>", "source": "<plug-in>"}
    return next((tag for key, tag in kinds.items() if key in keys), "<model>")


TeacherSource = Annotated[
    Annotated[ModelSource, Tag("<model>")]
    | Annotated[AdaptersOff, Tag("<base>")]
    | Annotated[ServerSource, Tag("<server>")]
    | Annotated[TeacherPlugin, Tag("<plug-in>")],
    Discriminator(_kind),
]


class LoraSection(Section):
    """Adapters of rank `rank`, scaled by alpha / rank, beside all linear layers or those that are named."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"

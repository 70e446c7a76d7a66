"""Describes the source of a recipe's models: a directory or hub, the student's own base, servers, or a plug-in."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from hopd.recipe.section import PluginSection, Section
from hopd.recipe.servers import Servers


class ModelSource(Section):
    """Names a directory, a hub model, or `package:NAME/PATH`. `layers` keeps only these decoder layers."""

    model: str
    layers: list[int] | None = None
    trust_remote_code: bool = False


class AdaptersOff(Section):
    """Uses the student with its adapters switched off as the teacher, which needs no second copy of the weights."""

    adapter_disabled: Literal[True]


class ServerSource(Servers):
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


TeacherSource = Annotated[
    Annotated[ModelSource, Tag("<model>")]
    | Annotated[AdaptersOff, Tag("<base>")]
    | Annotated[ServerSource, Tag("<server>")]
    | Annotated[TeacherPlugin, Tag("<plug-in>")],
    Discriminator(_kind),
]


class LoraSection(Section):
    """Adds adapters of rank `rank`, scaled by alpha / rank, to all linear layers or to the named ones."""

    rank: int = Field(16, ge=1, le=65_536)
    alpha: int = Field(32, ge=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"

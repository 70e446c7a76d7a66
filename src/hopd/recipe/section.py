"""Defines what all sections of a recipe share: strict models, unions picked by a key, and plug-ins."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Discriminator, ValidationInfo, model_validator

from hopd import plugin

UNKNOWN_KIND = "unknown_kind"  # pydantic's type of the error for a kind that does not exist


class Section(BaseModel):
    """Is the base of all parts of a recipe: immutable, without unknown keys, infinities or NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PluginSection(Section):
    """Names a class of your own, `source: my.module:Name`. The other keys are its options."""

    model_config = ConfigDict(extra="allow")

    where: ClassVar[str]  # the section's place in a recipe
    given: ClassVar[tuple[str, ...]] = ()  # arguments that its constructor may ask for besides the options
    needs: ClassVar[tuple[str, ...]]  # the attributes that it must have

    source: str

    @property
    def options(self) -> dict[str, Any]:
        """Returns the keys of the section that are passed to the class."""
        return dict(self.model_extra or {})

    def make(self, **given: Any) -> Any:
        """Builds the object. Raises `RecipeError` if the class cannot be built or lacks an attribute of `needs`."""
        return plugin.build(self.where, "source", {}, {"source": self.source, **self.options}, self.needs, **given)

    @model_validator(mode="after")
    def _known_options(self, info: ValidationInfo) -> Self:
        if not may_import(info):
            return self
        made = plugin.load_class(self.source, f"{self.where}.source")
        plugin.check_options(made, self.options, f"{self.where} '{self.source}'", self.given)
        return self


def may_import(info: ValidationInfo) -> bool:
    """Tells whether a recipe's own code may be imported while the recipe is read."""
    return not info.context or bool(info.context["imports"])


def kind_named_by(key: str, known: Collection[str], default: str | None = None, plugins: bool = True) -> Discriminator:
    """Picks the arm of a union by the value of `key`: the tag `<key name>`, or `<key plug-in>` for `my.module:Name`.

    Tags show up in the places of pydantic's errors; `sentences` recognises them by their brackets and leaves them out.
    """

    def tag(content: Any) -> str | None:
        name = content.get(key, default) if isinstance(content, Mapping) else getattr(content, key, None)
        if plugins and plugin.is_plugin(name):
            return f"<{key} plug-in>"
        return f"<{key} {name}>" if isinstance(name, str) and name in known else None

    return Discriminator(
        tag,
        custom_error_type=UNKNOWN_KIND,
        custom_error_message="Unknown kind",
        custom_error_context={"key": key, "known": " ".join(known), "plugins": int(plugins)},
    )

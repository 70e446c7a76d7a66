"""What the sections of a recipe have in common: strict models, kinds that a key names, and plug-ins."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Discriminator, model_validator

from hopd import plugin

UNKNOWN_KIND = "unknown_kind"  # the type of the error for a kind that does not exist


class Section(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PluginSection(Section):
    """A class of your own, `source: my.module:Name`. Its options are the other keys."""

    model_config = ConfigDict(extra="allow")

    where: ClassVar[str]  # in a recipe
    given: ClassVar[tuple[str, ...]] = ()  # what its constructor is handed besides the options, if it asks for it
    needs: ClassVar[tuple[str, ...]]  # the attributes that it must have

    source: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def make(self, **given: Any) -> Any:
        """Raises `RecipeError` where the class cannot be made, or lacks something."""
        return plugin.build(self.where, "source", {}, {"source": self.source, **self.options}, self.needs, **given)

    @model_validator(mode="after")
    def _known_options(self) -> Self:
        made = plugin.load_class(self.source, f"{self.where}.source")
        plugin.check_options(made, self.options, f"{self.where} '{self.source}'", self.given)
        return self


def kind_named_by(key: str, known: Collection[str], default: str | None = None, plugins: bool = True) -> Discriminator:
    """Picks the arm of a union by the value of `key`: the tag `<key name>`, or `<key plug-in>` for `my.module:Name`.

    Tags are no keys that anybody wrote; `sentences` tells them by their brackets.
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

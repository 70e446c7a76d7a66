"""Makes the parts of a run from a recipe: the only room that knows both. Nothing here trains."""

from hopd.assembly.assembly import Given, build
from hopd.assembly.parts import Parts

__all__ = ["Given", "Parts", "build"]

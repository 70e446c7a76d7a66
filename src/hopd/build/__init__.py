"""Makes the parts of a run from a recipe: the only room that knows both. Nothing here trains."""

from hopd.build.assembly import build
from hopd.build.parts import Parts

__all__ = ["Parts", "build"]

"""Makes the parts of a run from a recipe: the only room that knows both. Nothing here trains."""

from hopd.assembly.assembly import build
from hopd.assembly.parts import Parts

__all__ = ["Parts", "build"]

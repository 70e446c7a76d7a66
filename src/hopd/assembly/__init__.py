"""Makes the parts of a run from a recipe, as the only room that does. Nothing here trains."""

from hopd.assembly.assembly import Replacements, build
from hopd.assembly.parts import Parts

__all__ = ["Parts", "Replacements", "build"]

"""Contains the quickstart: a recipe and two models of 0.65M parameters, and the demo that trains with them.

Only the demo knows the rest of hopd; this module itself loads nothing.
"""

from pathlib import Path

RECIPE = Path(__file__).parent / "recipe.yaml"

"""The quickstart: a recipe and two models of 0.65M parameters that come with the package."""

from pathlib import Path

RECIPE = Path(__file__).parent / "recipe.yaml"

import subprocess
import sys
from typing import Any

import pytest

from hopd import horizon
from hopd.errors import RecipeError


@pytest.mark.parametrize(
    ("spec", "controller"),
    [
        ({"controller": "full"}, horizon.Full(100)),
        ({"controller": "truncated", "ratio": 0.1}, horizon.Truncated(100, ratio=0.1)),
        ({"controller": "truncated", "tokens": 30}, horizon.Truncated(100, tokens=30)),
        ({"controller": "progressive", "start": 5, "increment": 2}, horizon.Progressive(100, 5, 2, 1)),
        ({"controller": "progressive", "start": 5, "increment": 2, "every": 3}, horizon.Progressive(100, 5, 2, 3)),
        ({"controller": "staged", "stages": {0: 5, 3: 7}}, horizon.Staged(100, {0: 5, 3: 7})),
        ({"controller": "full", "rollouts": 3}, horizon.Full(100, rollouts=3)),
        (
            {"controller": "truncated", "tokens": 9, "continue": True, "rollouts": 16, "whole": 4},
            horizon.Truncated(100, tokens=9, continues=True, rollouts=16, whole=4),
        ),
    ],
)
def test_a_mapping_becomes_its_controller(spec: dict[str, Any], controller: horizon.Controller) -> None:
    assert horizon.build(spec, full_tokens=100) == controller


@pytest.mark.parametrize(
    ("spec", "window"),
    [
        ({"kind": "whole"}, horizon.Whole()),
        ({"kind": "first", "tokens": 9}, horizon.First(9)),
        ({"kind": "last", "tokens": 9}, horizon.Last(9)),
        ({"kind": "random", "tokens": 9}, horizon.Random(9)),
        ({"kind": "segment", "start": 0.2, "end": 0.3}, horizon.Segment(0.2, 0.3)),
    ],
)
def test_a_mapping_becomes_its_window(spec: dict[str, Any], window: horizon.Window) -> None:
    assert horizon.build_window(spec) == window


def test_building_leaves_the_mapping_as_it_was() -> None:
    spec = {"controller": "truncated", "ratio": 0.1}
    horizon.build(spec, full_tokens=100)
    assert spec == {"controller": "truncated", "ratio": 0.1}


def test_an_unknown_controller_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"full, truncated, progressive, staged.*got 'progresive' \(did you mean 'pr"):
        horizon.build({"controller": "progresive"}, full_tokens=100)


def test_an_unknown_window_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"window\.kind must be one of .*got 'frist' \(did you mean 'first'\?\)"):
        horizon.build_window({"kind": "frist"})


@pytest.mark.parametrize("spec", [{}, {"ratio": 0.1}, {"controller": None}, {"controller": ["full"]}])
def test_a_mapping_that_names_no_controller_is_an_error_that_lists_them(spec: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"horizon\.controller must be one of full, truncated, progressive, staged"):
        horizon.build(spec, full_tokens=100)


def test_an_unknown_option_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError, match=r"no option 'incremnt' \(did you mean 'increment'\?\); it takes start, incr"):
        horizon.build({"controller": "progressive", "start": 1, "incremnt": 1}, full_tokens=100)
    with pytest.raises(RecipeError, match=r"no option 'token' \(did you mean 'tokens'\?\); it takes tokens"):
        horizon.build_window({"kind": "first", "token": 1})


def test_the_full_length_is_an_argument_and_no_option_of_the_mapping() -> None:
    with pytest.raises(
        RecipeError, match="'full' has no option 'full_tokens'; it takes rollouts, whole, sketches, continue"
    ):
        horizon.build({"controller": "full", "full_tokens": 50}, full_tokens=100)


def test_continue_has_this_name_in_every_mapping_and_sentence() -> None:
    """In Python it is a reserved word, so the classes call it `continues`."""
    made = horizon.Truncated(100, ratio=0.1, continues=True)
    described = horizon.describe(made)
    assert described["continue"] is True
    assert "continues" not in described
    assert horizon.build(described, full_tokens=100) == made
    with pytest.raises(RecipeError, match=r"'continues' \(did you mean 'continue'\?\); it takes .*continue"):
        horizon.build({"controller": "truncated", "ratio": 0.1, "continues": True}, full_tokens=100)
    with pytest.raises(RecipeError) as error:
        horizon.build({"controller": "full", "contine": True}, full_tokens=100)
    assert "(did you mean 'continue'?)" in str(error.value)
    assert "continues" not in str(error.value)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(RecipeError, match="horizon 'progressive' needs increment"):
        horizon.build({"controller": "progressive", "start": 1}, full_tokens=100)
    with pytest.raises(RecipeError, match="window 'segment' needs end"):
        horizon.build_window({"kind": "segment", "start": 0.1})


@pytest.mark.parametrize(
    "spec",
    [
        {"controller": "truncated", "ratio": "a tenth"},
        {"controller": "truncated", "tokens": "512"},
        {"controller": "progressive", "start": None, "increment": 1},
        {"controller": "staged", "stages": 512},
        {"controller": "staged", "stages": [0, 512]},
        {"controller": "staged", "stages": {0: "512"}},
    ],
)
def test_a_value_of_the_wrong_type_is_a_recipe_error(spec: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"must be a (whole )?number.* got|write stages: \{0: 512\}, got"):
        horizon.build(spec, full_tokens=1000)


def test_a_segment_between_words_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match="window 'segment' cannot be made of"):
        horizon.build_window({"kind": "segment", "start": "a", "end": "b"})


def test_horizons_can_be_used_without_torch_or_transformers() -> None:
    program = """
import sys
import hopd.horizon
hopd.horizon.build({"controller": "full"}, full_tokens=8).decide(0)
hopd.horizon.build_window({"kind": "whole"}).span(8, 0.5)
print([name for name in ("torch", "transformers", "numpy", "pydantic") if name in sys.modules])
"""
    imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert imported.strip() == "[]"

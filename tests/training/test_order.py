"""The order of prompts is a shuffle of each epoch, and a function of seed and step."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import RecipeError
from hopd.recipe import Recipe
from hopd.rollout import Prompt
from hopd.training.order import PromptOrder

seeds = st.integers(0, 2**63 - 1)
sizes = st.tuples(st.integers(1, 20), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def prompts(count: int) -> list[Prompt]:
    return [Prompt(1000 + i, torch.tensor([i])) for i in range(count)]


def ids(order: PromptOrder, step: int) -> list[int]:
    return [prompt.id for prompt in order.at(step)]


def epoch(order: PromptOrder, number: int) -> list[int]:
    first = number * order.steps_per_epoch
    return [i for step in range(first, first + order.steps_per_epoch) for i in ids(order, step)]


@given(sizes, seeds, st.integers(0, 10_000))
def test_a_step_has_the_right_number_of_prompts_and_none_twice(size: tuple[int, int], seed: int, step: int) -> None:
    per_step, count = size
    chosen = ids(PromptOrder(prompts(count), per_step, seed), step)
    assert len(chosen) == len(set(chosen)) == per_step
    assert set(chosen) <= set(range(1000, 1000 + count))


@given(sizes, seeds, st.integers(0, 50))
def test_an_epoch_visits_each_prompt_at_most_once_and_leaves_out_less_than_a_step(
    size: tuple[int, int], seed: int, number: int
) -> None:
    per_step, count = size
    visited = epoch(PromptOrder(prompts(count), per_step, seed), number)
    assert max(Counter(visited).values()) == 1
    assert count - per_step < len(visited) <= count


def test_what_one_epoch_leaves_out_another_visits() -> None:
    order = PromptOrder(prompts(10), per_step=4, seed=0)
    assert {i for number in range(20) for i in epoch(order, number)} == set(range(1000, 1010))


@given(seeds)
def test_each_epoch_and_each_seed_has_another_order(seed: int) -> None:
    order = PromptOrder(prompts(64), per_step=8, seed=seed)
    assert len({tuple(epoch(order, number)) for number in range(4)}) == 4
    assert epoch(order, 0) != epoch(PromptOrder(prompts(64), per_step=8, seed=seed ^ 1), 0)
    assert epoch(order, 0) != sorted(epoch(order, 0))


@given(sizes, seeds, st.lists(st.integers(0, 1000), min_size=1, max_size=6))
def test_a_step_is_a_function_of_seed_and_step_alone(size: tuple[int, int], seed: int, steps: list[int]) -> None:
    per_step, count = size
    walked = PromptOrder(prompts(count), per_step, seed)
    forwards = [ids(walked, step) for step in steps]
    assert [ids(walked, step) for step in reversed(steps)] == forwards[::-1]
    assert [ids(PromptOrder(prompts(count), per_step, seed), step) for step in steps] == forwards


@pytest.mark.parametrize("count", [0, 7])
def test_too_few_prompts_for_a_step_are_an_error_that_says_what_to_change(count: int) -> None:
    with pytest.raises(RecipeError, match=rf"needs 8 prompts \(rollout\.prompts\) and the task has {count}; lower"):
        PromptOrder(prompts(count), per_step=8, seed=0)
    assert len(PromptOrder(prompts(8), per_step=8, seed=0).at(0)) == 8


@pytest.mark.parametrize(
    ("length", "steps"),
    [({"steps": 7}, 7), ({"epochs": 1}, 3), ({"epochs": 2}, 6), ({"epochs": 1.5}, 4), ({"epochs": 0.01}, 1)],
)
def test_a_run_has_its_steps_or_the_whole_steps_of_its_epochs(length: dict[str, float], steps: int) -> None:
    recipe = Recipe.parse(
        {
            "name": "small",
            "student": {"model": "s"},
            "teacher": {"model": "t"},
            "task": {"source": "addition"},
            "rollout": {"prompts": 4, "full_tokens": 8},
            "horizon": {"controller": "full"},
            "training": {"learning_rate": 1e-4} | length,
        }
    )
    assert PromptOrder(prompts(14), recipe.rollout.prompts, recipe.seed).steps(recipe.training) == steps

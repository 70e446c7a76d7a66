import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopd.tasks import RepeatedAddition, addition
from hopd.tasks.addition import is_held_out, prompt, scratchpad

numbers = st.integers(0, 999)
counts = st.integers(1, 26)

LINE = re.compile(r"([a-z])(\d{3})\+(\d{3}):(\d{5})(\d{5})(\d{5})=(\d{3});")


def number(digits: str) -> int:
    """Reads digits that are written least significant first."""
    return int(digits[::-1])


def lines_of(response: str) -> list[tuple[str, ...]]:
    worked, _, _ = response.partition("#")
    assert re.fullmatch(f"({LINE.pattern})+", worked)
    return LINE.findall(worked)


@given(numbers, numbers, counts)
def test_every_line_of_the_scratchpad_adds_digit_by_digit_with_its_carries(start: int, addend: int, steps: int) -> None:
    value = start
    lines = lines_of(scratchpad(start, addend, steps))
    assert [line[0] for line in lines] == list("abcdefghijklmnopqrstuvwxyz"[:steps])
    for _, before, added, *columns, after in lines:
        assert (number(before), number(added)) == (value, addend)
        carry = 0
        for place, column in enumerate(columns):
            a, b, carry_in, digit, carry_out = map(int, column)
            assert (a, b, carry_in) == (int(before[place]), int(added[place]), carry)
            assert a + b + carry_in == digit + 10 * carry_out
            assert digit == int(after[place])
            carry = carry_out
        value = (value + addend) % 1000
        assert number(after) == value


@given(numbers, numbers, counts)
def test_the_scratchpad_ends_in_the_sum_mod_1000(start: int, addend: int, steps: int) -> None:
    answer = scratchpad(start, addend, steps).rpartition("#")[2]
    assert len(answer) == 3
    assert number(answer) == (start + steps * addend) % 1000


@given(numbers, numbers, counts)
def test_a_step_takes_29_characters_and_the_answer_4(start: int, addend: int, steps: int) -> None:
    assert len(scratchpad(start, addend, steps)) == 29 * steps + 4


def test_twelve_steps_take_352_characters() -> None:
    assert len(scratchpad(274, 581, 12)) == 352


def test_a_worked_example() -> None:
    assert prompt(274, 581, 3) == "472+185*c:"
    assert scratchpad(274, 581, 3).startswith("a472+185:410507805125180=558;b558+185:")


def test_the_example_in_the_documentation_is_the_beginning_of_a_scratchpad() -> None:
    example = re.search(r"a472\+185:\d+", addition.__doc__ or "")
    assert example
    assert scratchpad(274, 581, 3).startswith(example[0])


@given(numbers, numbers, counts, st.integers(0, 100))
def test_a_scratchpad_that_forgets_every_carry_has_none(start: int, addend: int, steps: int, seed: int) -> None:
    value = start
    lines = lines_of(scratchpad(start, addend, steps, random.Random(seed), drop_carry=1))
    assert len(lines) == steps
    for _, before, _, *columns, after in lines:
        assert number(before) == value
        assert all(column[2] == column[4] == "0" for column in columns)
        value = sum((value // 10**place % 10 + addend // 10**place % 10) % 10 * 10**place for place in range(3))
        assert number(after) == value


def test_a_scratchpad_forgets_about_as_many_carries_as_it_is_told_to() -> None:
    rng = random.Random(0)
    worked = "".join(scratchpad(999, 999, 26, rng, drop_carry=0.5) for _ in range(100))
    carries = [(column[0], column[4]) for line in LINE.findall(worked) for column in line[3:6] if column[0] == "9"]
    assert 0.4 < sum(carry == "0" for _, carry in carries) / len(carries) < 0.6


def test_a_scratchpad_that_forgets_no_carry_is_the_right_one() -> None:
    assert scratchpad(274, 581, 12, random.Random(0), drop_carry=0) == scratchpad(274, 581, 12)


def pairs_of(task: RepeatedAddition) -> set[tuple[int, int]]:
    return {(number(p.prompt[:3]), number(p.prompt[4:7])) for p in task.problems if isinstance(p.prompt, str)}


@pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (7, 3)])
def test_training_and_held_out_pairs_are_disjoint_whatever_the_seeds(seeds: tuple[int, int]) -> None:
    training = pairs_of(RepeatedAddition(12, size=8192, seed=seeds[0]))
    held_out = pairs_of(RepeatedAddition(12, size=2048, seed=seeds[1], held_out=True))
    assert min(len(training), len(held_out)) > 1000
    assert not training & held_out
    assert all(is_held_out(*pair) for pair in held_out)


def test_about_a_tenth_of_all_pairs_is_held_out_and_every_digit_is_seen_in_training() -> None:
    held = [(start, addend) for start in range(200) for addend in range(1000) if is_held_out(start, addend)]
    assert 0.09 < len(held) / 200_000 < 0.11
    assert {start % 10 for start, _ in held} == {addend % 10 for _, addend in held} == set(range(10))


@pytest.mark.parametrize("held_out", [False, True])
def test_a_task_has_as_many_distinct_problems_as_asked_for(held_out: bool) -> None:
    task = RepeatedAddition(12, size=5000, held_out=held_out)
    assert len({problem.prompt for problem in task.problems}) == 5000
    assert [problem.id for problem in task.problems] == list(range(5000))


def test_the_seed_alone_decides_the_problems() -> None:
    assert RepeatedAddition(12, 100, seed=3).problems == RepeatedAddition(12, 100, seed=3).problems
    assert RepeatedAddition(12, 100, seed=3).problems != RepeatedAddition(12, 100, seed=4).problems


def test_a_smaller_task_is_the_beginning_of_a_larger_one() -> None:
    assert RepeatedAddition(12, 200).problems[:50] == RepeatedAddition(12, 50).problems


@pytest.mark.parametrize("steps", [1, 12, 26])
def test_the_worked_response_to_every_problem_scores_1(steps: int) -> None:
    task = RepeatedAddition(steps, size=50)
    for problem in task.problems:
        assert isinstance(problem.prompt, str)
        start, addend = number(problem.prompt[:3]), number(problem.prompt[4:7])
        assert problem.prompt == prompt(start, addend, steps)
        assert task.score(problem, scratchpad(start, addend, steps)) == 1


def test_only_the_exact_answer_after_the_last_mark_scores() -> None:
    task = RepeatedAddition(12, size=1)
    (problem,) = task.problems
    right = problem.answer
    wrong = f"{(int(right) + 1) % 1000:03d}"
    assert task.score(problem, f"#{right}") == 1
    assert task.score(problem, f"#{wrong}#{right}") == 1
    for response in ["", "#", right, f"#{wrong}", f"#{right} ", f"# {right}", f"#{right};", f"#{right}#{wrong}"]:
        assert task.score(problem, response) == 0, response

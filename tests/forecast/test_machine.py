"""The seconds of a machine that never saw the run, and the numbers they are made of."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import RecipeError
from hopd.forecast.machine import MACHINES, Machine

ROOT = Path(__file__).parents[2]
numbers = st.floats(1e-18, 1e3)
work = st.tuples(st.floats(1, 1e7), st.floats(1e6, 1e21))  # serial tokens and training FLOPs


@given(numbers, numbers, work, work)
def test_seconds_add_up_and_grow_with_either_cost(a, b, one, other):
    machine = Machine(a, b)
    both = machine.seconds(one[0] + other[0], one[1] + other[1])
    assert both == pytest.approx(machine.seconds(*one) + machine.seconds(*other), rel=1e-6, abs=0)
    assert both > max(machine.seconds(*one), machine.seconds(*other)) * (1 - 1e-9)
    assert machine.seconds(one[0], 0) == a * one[0]
    assert machine.seconds(0, one[1]) == b * one[1]


@given(numbers, numbers)
def test_what_is_written_can_be_read(a, b):
    machine = Machine(a, b)
    read = Machine.parse(str(machine))
    assert (read.a, read.b) == pytest.approx((a, b), rel=0.006, abs=0)
    assert str(read) == str(machine)


@given(numbers, numbers, st.lists(work, min_size=2, max_size=6))
def test_a_fit_finds_the_machine_that_took_the_steps(a, b, steps):
    machine = Machine(a, b)
    found = Machine.fitted([(*step, machine.seconds(*step)) for step in steps])
    for step in steps:
        assert found.seconds(*step) == pytest.approx(machine.seconds(*step), rel=1e-3, abs=0)


def test_few_and_many_rollouts_tell_the_two_numbers_apart():
    machine = Machine(0.003, 2e-11)
    steps = [(36, 9.5e9), (353, 9.1e10), (353, 2.8e9)]
    found = Machine.fitted([(*step, machine.seconds(*step)) for step in steps])
    assert (found.a, found.b) == pytest.approx((machine.a, machine.b), rel=1e-6, abs=0)


@given(st.lists(st.tuples(st.floats(1, 1e5), st.floats(1e6, 1e15), st.floats(1e-3, 1e3)), min_size=1, max_size=6))
def test_no_measurement_makes_a_number_negative(steps):
    """Steps that take less although they do more would: noise does that."""
    found = Machine.fitted(steps)
    assert min(found.a, found.b) >= 0
    assert found.seconds(1, 1) > 0


def test_eight_gpus_wait_as_long_for_a_token_and_share_the_flops():
    one, eight = Machine.named("h100"), Machine.named("8xh100")
    assert eight.seconds(1000, 0) == one.seconds(1000, 0)
    assert eight.seconds(0, 8e18) == pytest.approx(one.seconds(0, 1e18))
    assert one.seconds(0, 1e18) > 1000


def test_the_measured_card_has_the_numbers_of_its_page():
    """`a` is the page's, and `b` is within what its updates reach: see the comment at `MACHINES`."""
    page = (ROOT / "benchmarks" / "results" / "gpu.md").read_text()
    (milliseconds,) = re.findall(r"\| as it is \| 32 \| 128 \| ([\d.]+) \|", page)
    assert MACHINES["h200"].a == pytest.approx(float(milliseconds) / 1000, rel=0.02)
    # 4 rollouts of 124 to 128 + 3968 tokens; each passes the layers 5 times, the head 4 times (Qwen2 of this shape).
    layers = 2.0 * 28 * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960)
    tokens, attention, head = 4 * 4096, 4.0 * 28 * 1536 * 4096 / 2, 2.0 * 1536 * 151936
    (parts,) = re.findall(r"\| 4 \| 3,968 \| top_k 16 \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", page)
    flops = 5 * tokens * (layers + attention) + 4 * 4 * 3968 * head
    assert MACHINES["h200"].b == pytest.approx(sum(map(float, parts)) / flops, rel=0.1, abs=0)


@pytest.mark.parametrize("name", MACHINES)
def test_the_documentation_has_the_numbers_of_every_named_machine(name):
    machine = MACHINES[name]
    assert f"| `{name}` | {machine.a:g} | {machine.b:.2g} |" in (ROOT / "docs" / "analysis.md").read_text()
    assert name in (ROOT / "src" / "hopd" / "cli.py").read_text()  # in the help


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "8xh10",
            r"no machine is named '8xh10' \(did you mean '8xh100'\?\); write h200, h100, 8xh100, or a=SECONDS",
        ),
        ("", "no machine is named ''; write h200"),
        ("a=1", "'a=1' does not give the numbers a and b, each once; write h200"),
        ("a=1,b=fast", "'a=1,b=fast' does not give the numbers"),
        ("a=1,b=2,c=3", "does not give the numbers"),
        ("a=1,a=1,b=2", "does not give the numbers"),
        ("a=1,b=-2", "seconds, 0 or more and not both 0; got a=1 and b=-2; write h200"),
        ("a=nan,b=1", "got a=nan"),
        ("a=0,b=0", "not both 0"),
    ],
)
def test_what_is_no_machine_is_refused_with_what_to_write(text, sentence):
    with pytest.raises(RecipeError, match=sentence):
        Machine.parse(text)


def test_a_machine_is_read_without_torch():
    code = "import sys, hopd.forecast.machine; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

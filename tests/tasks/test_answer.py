"""The checks, and the processes that they run in."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hopd.errors import TaskError
from hopd.tasks.answer import InProcess, checker, exact, math
from hopd.tasks.workers import Workers

TOWER = "9^{9^{9^{9}}}"
CHECKS = """
import os, subprocess, sys, time

calls = 0

def slow(response, answer):
    time.sleep(600)

def starts_another(response, answer):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open(answer, "w").write(str(child.pid))
    time.sleep(600)

def dies(response, answer):
    os._exit(3)

def leaves(response, answer):
    sys.exit("no")

def counts(response, answer):
    global calls
    calls += 1
    return 1 / calls

def where(response, answer):
    return os.getpid() / 1e9

def loads_torch(response, answer):
    return float("torch" in sys.modules)

def gives(response, answer):
    import numpy, torch
    return {"torch": torch.tensor(0.5), "numpy": numpy.float32(0.25), "true": True, "int": 1,
            "none": None, "text": "1.0", "nan": float("nan"), "big": 7.5, "negative": -0.1, "mapping": {"score": 1},
            "many": numpy.ones(2)}[response]

def raises(response, answer):
    return {}["boxed"]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of checks of one's own."""
    (tmp_path / "own_checks.py").write_text(CHECKS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import own_checks  # type: ignore[import-not-found]

    yield own_checks
    sys.modules.pop("own_checks")


def alive(pid: int) -> bool:
    """Tells whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("response", "answer"), [("5", TOWER), (rf"\boxed{{{TOWER}}}", "5"), (f"${TOWER}$", TOWER + "+1")]
)
def test_an_answer_that_takes_for_ever_scores_0_and_the_next_is_scored(response: str, answer: str) -> None:
    assert [math(response, answer), math("5", "5")] == [0, 1]


def test_the_math_check_works_in_any_thread() -> None:
    found: list[float] = []
    threads = [threading.Thread(target=lambda: found.append(math("5", "5"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1, 1]


def test_what_takes_too_long_is_counted_with_its_reason_and_the_others_keep_their_order() -> None:
    outcomes = checker(math).run([("1", "1"), ("5", TOWER), ("2", "1"), ("3", "3")])
    assert [outcome.score for outcome in outcomes] == [1, 0, 0, 1]
    assert [outcome.failure for outcome in outcomes] == [None, "it took longer than 2 s", None, None]


def test_a_check_that_asks_for_too_much_memory_fails_alone() -> None:
    workers = Workers("operator:mul", seconds=20, memory=1 << 30, forks=True)
    outcomes = workers.run([("a", 1 << 31), (0.5, 1)])
    assert [(each.score, each.failure) for each in outcomes] == [(0, "MemoryError"), (0.5, None)]
    workers.close()


@pytest.mark.parametrize(
    ("name", "failure"),
    [
        ("slow", "it took longer than 0.2 s"),
        ("dies", "its process ended, with code 3"),
        ("leaves", "SystemExit: no"),
        ("raises", "KeyError: 'boxed'"),
    ],
)
def test_a_check_of_ones_own_that_fails_is_an_outcome_and_no_error(own: Any, name: str, failure: str) -> None:
    workers = checker(getattr(own, name), seconds=0.2 if name == "slow" else 20)
    assert [outcome.failure for outcome in workers.run([("1", "1")] * 2)] == [failure] * 2
    workers.close()


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "apart"])
def test_what_a_check_may_return(own: Any, inside: bool) -> None:
    run = (InProcess(own.gives) if inside else checker(own.gives, seconds=120)).run
    right = run([(name, "") for name in ("torch", "numpy", "true", "int")])
    assert [(each.score, each.failure) for each in right] == [(0.5, None), (0.25, None), (1, None), (1, None)]
    wrong = run([(name, "") for name in ("none", "text", "nan", "big", "negative", "mapping", "many")])
    assert [each.score for each in wrong] == [0] * 7
    assert all("a score is a number from 0 to 1" in str(each.failure) for each in wrong)
    assert wrong[3].failure == "it returned 7.5, and a score is a number from 0 to 1"


def test_quick_checks_share_one_process_without_torch_which_is_kept(own: Any) -> None:
    workers = checker(own.counts)
    assert [round(1 / outcome.score) for outcome in workers.run([("", "")] * 3)] == [1, 2, 3]
    assert [round(1 / outcome.score) for outcome in workers.run([("", "")])] == [4]
    assert checker(own.loads_torch).run([("", "")])[0].score == 0


def test_a_check_that_always_hangs_is_given_up(own: Any) -> None:
    outcomes = checker(own.slow, seconds=0.01).run([("", "")] * 40)
    assert [outcome.score for outcome in outcomes] == [0] * 40
    assert "it was not tried" in str(outcomes[-1].failure)


def test_what_a_check_has_started_is_killed_with_it_and_no_zombie_stays(own: Any, tmp_path: Path) -> None:
    place = tmp_path / "pid"
    checker(own.starts_another, seconds=3).run([("", str(place))])
    assert eventually(lambda: not alive(int(place.read_text())))


def test_closing_ends_the_processes_and_later_calls_start_new_ones(own: Any) -> None:
    workers = checker(own.where)
    first = round(workers.run([("", "")])[0].score * 1e9)
    assert alive(first)
    workers.close()
    assert not Path(f"/proc/{first}").exists()
    assert round(workers.run([("", "")])[0].score * 1e9) != first


def test_what_no_other_process_can_import_runs_in_this_one() -> None:
    assert isinstance(checker(lambda response, answer: 0.5), InProcess)
    assert checker(lambda response, answer: 0.5).run([("", "")])[0].score == 0.5


def test_a_check_that_cannot_be_loaded_is_an_error_before_the_first_answer() -> None:
    with pytest.raises(TaskError, match=r"cannot be loaded in a process of its own: RecipeError: check 'no_such:f'"):
        Workers("no_such:f", 2).run([("", "")])


MAIN = """
import sys, threading
from hopd.tasks.answer import checker, math
print("main", flush=True)
def mine(response, answer):
    return 0.5
assert checker(mine).run([("", "")])[0].score == 0.5
assert math("5", "5") == 1
{}
"""


def main(place: Path, last: str) -> "subprocess.Popen[str]":
    (place / "script.py").write_text(MAIN.format(last), encoding="utf-8")
    return subprocess.Popen([sys.executable, "-B", str(place / "script.py")], stdout=subprocess.PIPE, text=True)


def test_a_script_without_a_guard_runs_once_and_leaves_nothing(tmp_path: Path) -> None:
    with main(tmp_path, "") as script:
        assert script.communicate()[0] == "main\n"
        assert script.returncode == 0


def children(parent: int) -> list[int]:
    stats = [path.read_text().rpartition(")") for path in Path("/proc").glob("[0-9]*/stat")]
    return [int(name.partition(" ")[0]) for name, _, rest in stats if int(rest.split()[1]) == parent]


def test_processes_die_with_their_parent_even_in_the_middle_of_a_power(tmp_path: Path) -> None:
    last = """
from hopd.tasks.workers import Workers
workers = Workers("operator:pow", 600)
assert workers.run([(1, 1)])[0].score == 1
print("ready", flush=True)
workers.run([(9, 9**10)])
"""
    with main(tmp_path, last) as script:
        assert script.stdout is not None
        assert [script.stdout.readline() for _ in range(2)] == ["main\n", "ready\n"]
        pids = children(script.pid)
        assert len(pids) == 2  # that of math, and the one that computes
        script.kill()
        assert eventually(lambda: not any(map(alive, pids)))


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False).map(
    lambda x: round(x, 6) if abs(x) < 1e9 else x
)


@given(NUMBERS, st.sampled_from(["", " ", "\n"]))
def test_exact_finds_a_number_in_each_of_its_forms(number: float, space: str) -> None:
    text = f"{Decimal(str(number)):f}"
    assert exact(space + text + space, number) == 1
    assert exact(str(number), text) == 1
    assert exact(text + ("0" if "." in text else ".0"), number) == 1
    assert exact(text, float(number)) == float(Decimal(str(float(number))) == Decimal(text))


@given(st.text(), st.text())
def test_exact_is_never_true_of_different_texts_unless_both_are_one_number(response: str, answer: str) -> None:
    same = response.strip() == answer.strip()
    if not same and exact(response, answer):
        assert Decimal(response.strip()) == Decimal(answer.strip())
    assert exact(answer, answer) == 1


@given(st.integers(0, 9999), st.sampled_from(["0{}", "{:,}.", "{}%", "{} 1", "{}/1", "${}$", "--{}", "{}_0", "{}x"]))
def test_exact_takes_no_other_form_for_a_number(number: int, form: str) -> None:
    text = form.format(number)
    assert exact(text, number) == float(text == str(number))


def test_exact_compares_what_is_no_number_as_text() -> None:
    different = [
        ("1,000", 1000),
        ("007", "7"),
        ("True", 1),
        ("1", True),
        ("٧", 7),
        ("", 0),
        ("nan", "NaN"),
        ("inf", "Infinity"),
    ]
    assert [exact(*pair) for pair in different] == [0.0] * len(different)
    assert [exact("72", 72.0), exact("72.0", 72), exact("1e-05", "0.00001"), exact("True", True)] == [1] * 4
    assert exact("9" * 6000, "9" * 6000 + ".0") == 1

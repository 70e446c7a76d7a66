"""Serial tokens: the longest rollout of each step, over all processes, added up."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hopd.model.flops import PassCost
from hopd.processes import Processes
from hopd.rollout import FinishReason, Prompt, Rollout, Stretch
from hopd.run.ledger import Account, Ledger
from tests.test_processes import launched, run

COST = PassCost(2.0, 1.0, 3.0)
lengths = st.lists(st.integers(1, 50), min_size=1, max_size=6)  # of a step's rollouts, in tokens


def book(ledger, step):
    """Counts one step whose rollouts have these lengths."""
    prompt = Prompt(0, torch.zeros(3, dtype=torch.long))
    ids = [torch.zeros(length, dtype=torch.long) for length in step]
    rollouts = [Rollout(prompt, i, of, torch.zeros(len(of)), FinishReason.STOP) for i, of in enumerate(ids)]
    stretches = [Stretch(Rollout.start(prompt, i, seed=0), limit=50) for i in range(len(step))]
    ledger.add_stretches(stretches, rollouts, COST)
    return ledger.commit(Processes())


@given(st.lists(lengths, max_size=5))
def test_serial_tokens_are_the_longest_rollout_of_each_step(steps):
    ledger = Ledger(Path("never-written"), writes=False)
    for step in steps:
        before = ledger.run.serial_tokens
        assert book(ledger, step).serial_tokens == ledger.run.serial_tokens - before == max(step)
        assert ledger.run.serial_tokens <= ledger.run.generated_tokens
    assert (ledger.run.serial_tokens == ledger.run.generated_tokens) == all(len(step) == 1 for step in steps)


def test_a_step_without_rollouts_adds_none():
    ledger = Ledger(Path("never-written"), writes=False)
    book(ledger, [4, 7])
    book(ledger, [])
    assert ledger.run.serial_tokens == 7


COUNTS = """
import sys
from pathlib import Path
from hopd.processes import Processes
from hopd.run.ledger import Ledger

processes = Processes.start()
ledger = Ledger(Path(sys.argv[1]), writes=processes.is_first)
for longest in ((5, 9, 0), (8, 2, 3))[processes.rank]:
    ledger.add(generated_tokens=2 * longest, serial_tokens=longest)
    ledger.commit(processes)
processes.stop()
"""


def test_of_two_processes_the_slowest_counts(tmp_path):
    """Another one is the slowest in every step, and tokens are added up as before."""
    (tmp_path / "counts.py").write_text(COUNTS)
    run(launched(2, [str(tmp_path / "counts.py"), str(tmp_path / "ledger.json")]))
    account = json.loads((tmp_path / "ledger.json").read_text())["run"]
    assert account["serial_tokens"] == 8 + 9 + 3
    assert account["generated_tokens"] == 2 * (5 + 9 + 0 + 8 + 2 + 3)


def test_a_resume_never_reduces_them(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    book(ledger, [10, 3])
    checkpoint = ledger.state_dict()
    book(ledger, [5, 5])
    ledger.add(serial_tokens=4)
    ledger.give_up()
    resumed = Ledger(tmp_path / "ledger.json")
    resumed.resume(checkpoint)
    assert resumed.run.serial_tokens == 10
    assert resumed.spent.serial_tokens == ledger.spent.serial_tokens == 10 + 5 + 4


@pytest.mark.parametrize("kept", ["checkpoint", "file"])
def test_a_ledger_from_before_they_were_counted_loads(tmp_path, kept):
    ledger = Ledger(tmp_path / "ledger.json")
    book(ledger, [10, 3])
    state = ledger.state_dict()
    assert state.pop("serial_tokens") == 10
    if kept == "file":
        content = json.loads(ledger.path.read_text())
        for account in content.values():
            del account["serial_tokens"]
        ledger.path.write_text(json.dumps(content))
    resumed = Ledger(tmp_path / "ledger.json")
    resumed.resume(state)
    assert resumed.run == Account(**state)
    assert resumed.run.serial_tokens == 0
    assert resumed.run.generated_tokens == 13
    assert book(resumed, [6]).serial_tokens == 6

"""What processes add up, agree on and hand round, by two real ones."""

import os
import subprocess
import sys

import pytest
import torch

from hopd.errors import EngineError, TaskError
from hopd.processes import Processes

PROGRAM = """
import torch
from hopd.errors import EngineError, HopdError, TaskError
from hopd.processes import Processes

processes = Processes.start()
rank = processes.rank
assert (processes.size, processes.is_first) == (2, rank == 0)
given = torch.tensor([1.0, 10.0 * rank], dtype=torch.float64)
assert processes.sum(given).tolist() == [2.0, 10.0]
assert given.tolist() == [1.0, 10.0 * rank], "the tensor that was given has changed"
assert processes.total(rank + 0.5) == 2.0
assert processes.highest(3.0 - rank) == 3.0
assert processes.broadcast(f"from {rank}") == "from 0"
assert processes.gather([rank, str(rank)]) == [0, "0", 1, "1"]
processes.agree(None)
for ranks, expected in {(1,): ["EngineError: process 1: of 1", "EngineError: of 1"],
                        (0,): ["EngineError: of 0", "EngineError: process 0: of 0"],
                        (0, 1): ["EngineError: of 0", "EngineError: of 1"]}.items():
    try:
        processes.agree(EngineError(f"of {rank}") if rank in ranks else None)
    except HopdError as error:
        assert f"{type(error).__name__}: {error}" == expected[rank], error
    else:
        raise AssertionError(f"process {rank} has not heard of an error")
try:
    with processes.together():
        if rank == 1:
            raise TaskError("inside")
except TaskError as error:
    assert str(error) == ("process 1: inside", "inside")[rank], error
else:
    raise AssertionError(f"process {rank} has not heard of an error")
processes.wait()
processes.stop()
print(f"process {rank} agrees")
"""


def test_two_processes_agree(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    on_cpus = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=on_cpus, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "process 0 agrees" in ended.stdout
    assert "process 1 agrees" in ended.stdout


def test_one_process_agrees_with_itself():
    alone, tensor = Processes(), torch.ones(2)
    assert alone.sum(tensor) is tensor
    assert alone.broadcast("mine") == "mine"
    assert alone.gather([1, 2]) == [1, 2]
    alone.agree(None)
    with pytest.raises(EngineError, match=r"^it failed$"):
        alone.agree(EngineError("it failed"))
    with pytest.raises(TaskError):
        alone.agree(TaskError("so did this"))

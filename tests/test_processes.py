"""Two real processes on this machine train like one, whatever launches them and wherever they resume."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hopd.model import load

RECIPE = """
name: run
output: {output}
seed: 3
student: {{model: "package:hopd/quickstart/student"}}
teacher: {{model: "package:hopd/quickstart/teacher"}}
task: {{source: addition, steps: 3, size: 40}}
rollout: {{prompts: 6, samples: 2, full_tokens: 60}}
horizon: {{controller: progressive, start: 10, increment: 5}}
training: {{steps: 6, learning_rate: 1.0e-3, mini_batch: 3, warmup_steps: 2, schedule: cosine, tokens_per_batch: 256}}
evaluation: {{task: {{source: addition, steps: 2, size: 5, held_out: true}}, every: 3}}
checkpoint: {{every: 3, keep_last: 9}}
"""
STEPS = 6
LOSS_TOLERANCE = 1e-3  # of the largest loss: sums in another order, over six steps of AdamW


def launched(processes: int, program: list[str], launcher: str = "torchrun") -> list[str]:
    """The command line of so many processes, on a port that is free now."""
    if processes == 1:
        return [sys.executable, *program]
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    if launcher == "torchrun":
        module = ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port]
    else:
        module = [
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            str(processes),
            "--main_process_port",
            port,
        ]
    return [sys.executable, "-m", *module, *program]


def run(command: list[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def train(processes: int, *changes: str, output: Path | None = None, launcher: str = "torchrun") -> Path:
        """Trains, or continues in `output`; returns the run's directory."""
        output = output or tmp_path_factory.mktemp("runs")
        (output / "recipe.yaml").write_text(RECIPE.format(output=output))
        sets = [part for change in changes for part in ("--set", change)]
        program = ["-m", "hopd", "train", str(output / "recipe.yaml"), "--resume", *sets]
        run(launched(processes, program, launcher))
        return output / "run"

    return train


@pytest.fixture(scope="module")
def one(train: Callable[..., Path]) -> Path:
    """The run that all others must equal."""
    return train(1)


def lines(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def deviation(run: Path, other: Path) -> float:
    """Of the loss curves: the largest difference, as a part of the largest loss."""
    a, b = ([line["loss"] for line in lines(path)] for path in (run, other))
    assert len(a) == len(b) == STEPS
    return float(max(abs(x - y) for x, y in zip(a, b, strict=True)) / max(map(abs, a)))


def check_same(run: Path, other: Path, weights: str = "model.safetensors") -> None:
    print(f"deviation: {deviation(run, other):.2g}")
    assert deviation(run, other) < LOSS_TOLERANCE
    for key in ("step", "horizon", "generated_tokens", "trained_tokens", "serial_tokens"):
        assert [line[key] for line in lines(run)] == [line[key] for line in lines(other)]
    for line, same in zip(lines(run), lines(other), strict=True):
        assert same["gradient_norm"] == pytest.approx(line["gradient_norm"], rel=1e-2, abs=1e-5)
    for key in ("step", "score", "tokens", "serial_tokens"):
        assert [line.get(key) for line in lines(run, "evaluations")] == [
            line.get(key) for line in lines(other, "evaluations")
        ]
    a, b = (load_file(path / "checkpoints" / f"step-{STEPS:06d}" / weights) for path in (run, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_give_the_curve_of_one(train, one, launcher):
    two = train(2, launcher=launcher)
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    check_same(one, two)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_resumes_on_another_number_of_processes(train, one, before, after, tmp_path):
    train(before, output=tmp_path)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:06d}")  # as if it had been killed there
    resumed = train(after, output=tmp_path)
    check_same(one, resumed)


def test_rollouts_continue_on_any_number_of_processes(train, tmp_path):
    """Twelve in flight end three a step, on whichever process they are; those of two processes then go on on one."""
    continued = ("horizon={controller: truncated, tokens: 15, continue: true}", "training.mini_batch=null")
    one, two = train(1, *continued), train(2, *continued, output=tmp_path)
    check_same(one, two)
    shutil.rmtree(two / "checkpoints" / f"step-{STEPS:06d}")
    assert (two / "checkpoints" / "step-000003" / "flight.safetensors").exists()
    check_same(one, train(1, *continued, output=tmp_path))


def test_a_process_without_prompts_waits_for_the_others(train):
    """Mini-batches of one prompt: the second process never has any."""
    single = ("training.mini_batch=1", "rollout.prompts=2", "evaluation.task.size=1")
    check_same(train(1, *single), train(2, *single))


DISAGREES = """
import sys
from hopd import Recipe
from hopd.horizon import Decision, Truncated
from hopd.distiller import Distiller
import os

class Disagrees(Truncated):
    def decide(self, step):
        return Decision(5 + 10 * int(os.environ["RANK"]), f"of process {os.environ['RANK']}")

run = Distiller.of(Recipe.load(sys.argv[1]), controller=Disagrees(60, tokens=5))
run.train()
"""


def test_the_first_process_decides_the_horizon(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(output=tmp_path))
    (tmp_path / "disagrees.py").write_text(DISAGREES)
    run(launched(2, [str(tmp_path / "disagrees.py"), str(tmp_path / "recipe.yaml")]))
    assert [line["tokens"] for line in lines(tmp_path / "run", "horizon")] == [5] * STEPS
    assert max(line["mean_length"] for line in lines(tmp_path / "run")) <= 5


FSDP = "training.sharding=fsdp"


@pytest.fixture(scope="module")
def sharded(train: Callable[..., Path]) -> Path:
    return train(2, FSDP)


def test_a_sharded_model_gives_the_curve_of_one_process(one, sharded):
    check_same(one, sharded)


def test_several_processes_sketch_the_gradients_of_one(train):
    sketches = "horizon={controller: full, sketches: true}"
    runs = [train(1, sketches), train(2, sketches), train(2, sketches, FSDP)]
    one, *others = (lines(path)[0]["gradients"] for path in runs)
    largest = max(map(max, one["products"]))
    assert largest > 0
    for other in others:
        assert other["noise"] == pytest.approx(one["noise"], rel=2e-3, abs=2e-3 * max(one["noise"]))
        for row, same in zip(other["products"], one["products"], strict=True):
            assert row == pytest.approx(same, rel=2e-3, abs=2e-3 * largest)


def test_so_it_does_with_gradient_checkpointing(train, one):
    check_same(one, train(2, FSDP, "training.gradient_checkpointing=true"))


def test_a_sharded_head_of_its_own(train, tmp_path):
    """Embedding and head of the quickstart's student are one matrix; here they are two."""
    student = load("package:hopd/quickstart/student")
    student.model.config.tie_word_embeddings = False
    student.model.lm_head.weight = torch.nn.Parameter(student.model.lm_head.weight.detach().clone())
    student.model.save_pretrained(tmp_path / "untied")
    student.tokenizer.save_pretrained(tmp_path / "untied")
    untied = f"student.model={tmp_path / 'untied'}"
    check_same(train(1, untied), train(2, FSDP, untied))


def test_a_sharded_model_waits_for_a_process_without_prompts(train):
    single = ("training.mini_batch=1", "rollout.prompts=2", "evaluation.task.size=1")
    check_same(train(1, *single), train(2, FSDP, *single))


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_sharded_run_resumes_as_a_whole_one_and_back(train, one, before, after, tmp_path):
    train(before, FSDP, output=tmp_path)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:06d}")
    check_same(one, train(after, FSDP if after == 2 else "training.sharding=none", output=tmp_path))


def test_a_sharded_average_is_that_of_one_process_and_resumes(train, tmp_path):
    ema, average = ("training.ema=0.9", "training.schedule=constant"), "average/model.safetensors"
    whole, last = train(1, *ema), Path("checkpoints") / f"step-{STEPS:06d}"
    raw, averaged = (load_file(whole / last / file) for file in ("model.safetensors", average))
    assert max(float((raw[name] - averaged[name]).abs().max()) for name in raw) > 3e-3  # check_same allows 2e-4
    check_same(whole, train(2, FSDP, *ema, output=tmp_path), average)
    shutil.rmtree(tmp_path / "run" / last)
    check_same(whole, train(2, FSDP, *ema, output=tmp_path), average)


def test_a_checkpoint_of_a_sharded_model_is_one_directory_of_hugging_face(one, sharded):
    place = sharded / "checkpoints" / f"step-{STEPS:06d}"
    other = one / "checkpoints" / place.name
    assert sorted(path.name for path in place.iterdir()) == sorted(path.name for path in other.iterdir())
    for name in ("model.safetensors", "optimizer.safetensors"):
        a, b = load_file(place / name), load_file(other / name)
        assert {key: (t.shape, t.dtype) for key, t in a.items()} == {key: (t.shape, t.dtype) for key, t in b.items()}
    assert (place / "config.json").read_text() == (other / "config.json").read_text()
    ids = torch.arange(1, 13)[None]
    logits = [AutoModelForCausalLM.from_pretrained(path)(input_ids=ids).logits for path in (place, other)]
    torch.testing.assert_close(*logits, rtol=1e-2, atol=1e-2)


def test_bf16_sharded_is_close_to_bf16_of_one_process(train):
    """Gradients are rounded in other places, so the curves part after some steps; the first is the same."""
    bf16 = ("training.precision=bf16", "training.steps=2")
    a, b = (lines(train(processes, *bf16, *changes))[0] for processes, changes in ((1, ()), (2, (FSDP,))))
    assert a["generated_tokens"] == b["generated_tokens"]
    for key in ("loss", "reverse_kl"):
        assert b[key] == pytest.approx(a[key], rel=0.05, abs=1e-3)


def test_sharded_adapters_and_their_base_as_teacher(train, tmp_path):
    """Passes of the teacher gather the same layers; base weights are sharded and never change."""
    lora = ("lora={rank: 4, alpha: 8}", "training.learning_rate=1e-2")
    whole = train(1, *lora)
    check_same(whole, train(2, FSDP, *lora), "adapter_model.safetensors")
    came = f"student.model={whole / 'checkpoints' / f'step-{STEPS:06d}'}"
    back = (*lora, came, "teacher={adapter_disabled: true}", "training.mini_batch=1", "rollout.prompts=2")
    check_same(train(1, *back), train(2, FSDP, *back), "adapter_model.safetensors")

"""Faults in the middle of a run: NaN, a full disk, SIGTERM, and what a crash leaves behind."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from hopd import Distiller, Recipe
from hopd.errors import NonFiniteLoss
from hopd.run import checkpoint

TEACHER = Path(str(files("hopd") / "quickstart" / "teacher"))
# Two additions: the `#` stands at response token 58, where only the third step's horizon of 70 gets to.
UNTIL_THE_END = [
    "task.steps=2",
    "rollout.full_tokens=70",
    "horizon={controller: progressive, start: 20, increment: 25}",
    "training.steps=4",
    "checkpoint.every=1",
]


def teacher_without(token, path):
    """The quickstart teacher, saved with a NaN embedding of one token: it scores until it has read that token."""
    model: Any = AutoModelForCausalLM.from_pretrained(TEACHER)
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    embedding = model.get_input_embeddings().weight.detach()
    model.lm_head.weight = torch.nn.Parameter(embedding.clone())
    model.config.tie_word_embeddings = False
    embedding[tokenizer.get_vocab()[token]] = torch.nan
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def sets(*settings):
    return [f"--set={setting}" for setting in settings]


def weights(run, step):
    return load_file(run / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def same(mine, theirs):
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_saved(run):
    return [found.step for found in checkpoint.find(run / "checkpoints")]


def small_files(limit):
    """For `preexec_fn`: from here on no file may grow beyond `limit` bytes, as on a disk that is full."""

    def set_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return set_limit


def test_a_nan_of_the_teacher_stops_before_the_update_and_names_the_rollout(tiny, tmp_path):
    teacher = teacher_without("#", tmp_path / "teacher")
    run = Distiller.of(Recipe.load(tiny, [*UNTIL_THE_END, f"teacher.model={teacher}"]))
    with pytest.raises(
        NonFiniteLoss, match=r"the loss is nan at response token \d+ of rollout of prompt \d+, sample 0"
    ):
        run.train()
    directory = tmp_path / "runs" / "tiny"
    assert steps_saved(directory) == [1, 2]
    saved, held = weights(directory, 2), run.parts.student.model.state_dict()
    assert all(torch.equal(saved[name], held[name].cpu()) for name in saved)
    assert all(weight.isfinite().all() for weight in saved.values())
    assert [line["step"] for line in lines(directory / "metrics.jsonl")] == [1, 2]


def test_a_nan_in_a_later_micro_batch_updates_nothing_either(tiny, tmp_path):
    teacher = teacher_without("#", tmp_path / "teacher")
    one_rollout_each = "training.tokens_per_batch=1"
    run = Distiller.of(Recipe.load(tiny, [*UNTIL_THE_END, f"teacher.model={teacher}", one_rollout_each]))
    with pytest.raises(NonFiniteLoss):
        run.train()
    saved, held = weights(tmp_path / "runs" / "tiny", 2), run.parts.student.model.state_dict()
    assert all(torch.equal(saved[name], held[name].cpu()) for name in saved)


def test_a_run_that_met_a_nan_exits_with_2_and_goes_on_once_the_teacher_is_mended(command, tiny, tmp_path):
    teacher = teacher_without("#", tmp_path / "teacher")
    arguments = [tiny, *sets(*UNTIL_THE_END, f"teacher.model={teacher}")]
    ended = command("train", *arguments)
    assert ended.code == 2
    assert ended.err.startswith("hopd: the loss is nan at response token ")
    assert len(ended.err.splitlines()) == 1
    assert steps_saved(tmp_path / "runs" / "tiny") == [1, 2]

    shutil.copytree(TEACHER, teacher, dirs_exist_ok=True)
    ended = command("train", *arguments, "--resume")
    assert ended.code == 2
    assert "the files of the teacher" in ended.err
    ended = command("train", *arguments, "--resume", "--accept-changes")
    assert ended.code == 0, ended.err
    assert steps_saved(tmp_path / "runs" / "tiny") == [3, 4]
    assert [line["step"] for line in lines(tmp_path / "runs" / "tiny" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_nan_teacher_is_found_by_the_preflight_before_anything_is_written(command, tiny, tmp_path):
    teacher = teacher_without("=", tmp_path / "teacher")
    ended = command("train", tiny, *sets(f"teacher.model={teacher}", "horizon={controller: full}"))
    assert ended.code == 2
    assert ended.err.startswith("hopd: the loss is nan at response token ")
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_all_nan_are_called_nan(command, tiny, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(TEACHER), AutoTokenizer.from_pretrained(TEACHER)
    model.model.norm.weight.data.fill_(torch.nan)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    ended = command("check", tiny, *sets(f"teacher.model={tmp_path / 'teacher'}"))
    assert ended.code == 2
    assert "nan" in ended.err.lower() or "finite" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_a_student_that_diverges_to_nan_stops_with_a_sentence(command, tiny, tmp_path):
    settings = sets("training.learning_rate=1e18", "training.steps=6", "checkpoint.every=1")
    ended = command("train", tiny, *settings)
    assert ended.code == 2, ended.err
    assert len(ended.err.splitlines()) == 1
    assert "nan" in ended.err or "inf" in ended.err
    last = steps_saved(tmp_path / "runs" / "tiny")[-1]
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "runs" / "tiny", last).values())


@pytest.mark.parametrize(("limit", "file"), [(1_000_000, "model"), (4_000_000, "optimizer")])
def test_a_full_disk_leaves_the_last_checkpoint_whole_and_the_run_goes_on_later(
    process, command, tiny, tmp_path, limit, file
):
    run = tmp_path / "runs" / "tiny"
    assert command("train", tiny, "--set=training.steps=1").code == 0
    before = weights(run, 1)

    ended = process("train", tiny, "--resume", preexec_fn=small_files(limit))
    assert ended.code == 2, ended.err
    assert ended.err.startswith("hopd: the checkpoint of step 2 could not be written to ")
    assert "step-000001 is whole" in ended.err
    assert "--resume" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]
    assert same(weights(run, 1), before)
    AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step-000001")

    ended = command("train", tiny, "--resume")
    assert ended.code == 0, ended.err
    assert "resumed after step 1 of 2" in ended.out
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [1, 2]
    assert command("train", tiny, f"--set=output={tmp_path / 'whole'}").code == 0
    assert same(weights(run, 2), weights(tmp_path / "whole" / "tiny", 2))


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(process, tiny, tmp_path):
    ended = process("train", tiny, preexec_fn=small_files(1_000_000))
    assert ended.code == 2, ended.err
    assert "no earlier one exists" in ended.err
    assert list((tmp_path / "runs" / "tiny" / "checkpoints").iterdir()) == []


def test_a_disk_that_is_full_between_checkpoints_loses_no_earlier_one_and_is_reported(process, command, tiny, tmp_path):
    run = tmp_path / "runs" / "tiny"
    assert command("train", tiny, "--set=training.steps=1").code == 0
    ended = process("train", tiny, "--set=training.steps=40", "--resume", preexec_fn=small_files(5_000))
    assert steps_saved(run) == [1]
    assert 1 < (run / "metrics.jsonl").read_text().count("\n") < 40  # it is this file that found no room
    resumed = command("train", tiny, "--set=training.steps=2", "--resume")
    assert resumed.code == 0, resumed.err
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [1, 2]

    assert ended.code == 2, ended.err
    assert ended.err.startswith("hopd: ")
    assert len(ended.err.splitlines()) == 1


def signalled(signum, tiny, run, *settings):
    """A run as a process that gets the signal once three steps are complete: its exit code and standard error."""
    command = [sys.executable, "-m", "hopd", "train", tiny, "--set=training.steps=200", *settings]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = run / "metrics.jsonl"
    while child.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 3):
        time.sleep(0.01)
    child.send_signal(signum)
    _, err = child.communicate()
    return child.returncode, err


def assert_resumes_to_the_same_bits(command, tiny, tmp_path, *settings):
    """Two steps more, and the same number of steps without an interruption."""
    run, whole = tmp_path / "runs" / "tiny", tmp_path / "whole" / "tiny"
    steps = steps_saved(run)[-1] + 2
    settings = (*settings, f"--set=training.steps={steps}")
    resumed = command("train", tiny, *settings, "--resume")
    assert resumed.code == 0, resumed.err
    assert command("train", tiny, *settings, f"--set=output={whole.parent}").code == 0
    for name in ("model", "optimizer"):
        saved = [load_file(at / "checkpoints" / f"step-{steps:06d}" / f"{name}.safetensors") for at in (run, whole)]
        assert same(*saved)
    measured = {"seconds": 0, "peak_memory": 0}
    timeless = [[line | measured for line in lines(at / "metrics.jsonl")] for at in (run, whole)]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_saves_its_complete_steps_and_resumes_to_the_same_bits(command, tiny, tmp_path, signum):
    run = tmp_path / "runs" / "tiny"
    only_when_stopped = "--set=checkpoint.every=1000"
    code, err = signalled(signum, tiny, run, only_when_stopped)
    assert code == 128 + signum, err
    assert err == f"hopd: {signum.name}: saved; continue with --resume\n"
    complete = [line["step"] for line in lines(run / "metrics.jsonl")]
    assert complete == list(range(1, len(complete) + 1))
    assert 3 <= len(complete) < 200
    assert steps_saved(run) == [len(complete)]
    assert_resumes_to_the_same_bits(command, tiny, tmp_path, only_when_stopped)


def test_a_run_that_is_killed_resumes_from_its_last_checkpoint_to_the_same_bits(command, tiny, tmp_path):
    run = tmp_path / "runs" / "tiny"
    code, _ = signalled(signal.SIGKILL, tiny, run, "--set=checkpoint.every=2")
    assert code == -signal.SIGKILL
    assert steps_saved(run)
    assert_resumes_to_the_same_bits(command, tiny, tmp_path, "--set=checkpoint.every=2")


def test_a_run_that_is_stopped_before_its_first_step_is_resumed_from_the_beginning(command, tiny, tmp_path):
    from hopd.errors import Interrupted
    from hopd.rollout import NativeEngine

    class Stopping(NativeEngine):
        def extend(self, *arguments):
            signal.raise_signal(signal.SIGTERM)
            return super().extend(*arguments)

    run = Distiller.of(Recipe.load(tiny))
    run.parts.engine = Stopping(run.parts.student)
    with pytest.raises(Interrupted) as stop:
        run.train()
    assert stop.value.exit_code == 143
    assert steps_saved(tmp_path / "runs" / "tiny") == [0]

    assert command("train", tiny, "--resume").code == 0
    assert command("train", tiny, f"--set=output={tmp_path / 'whole'}").code == 0
    assert same(weights(tmp_path / "runs" / "tiny", 2), weights(tmp_path / "whole" / "tiny", 2))


@pytest.mark.parametrize("prefix", [".unfinished-", ".removed-"])
def test_what_an_interruption_left_behind_is_never_loaded_and_is_removed(command, tiny, tmp_path, prefix):
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    assert command("train", tiny).code == 0
    leftover = checkpoints / f"{prefix}step-000009"
    shutil.copytree(checkpoints / "step-000002", leftover)
    (leftover / "model.safetensors").write_bytes(b"half of a file")

    ended = command("train", tiny, "--set=training.steps=3", "--resume")
    assert ended.code == 0, ended.err
    assert "resumed after step 2 of 3" in ended.out
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000002", "step-000003"]


@pytest.mark.parametrize("prefix", [".unfinished-", ".removed-"])
def test_a_resumed_run_with_nothing_left_to_do_removes_it_too(command, tiny, tmp_path, prefix):
    checkpoints = tmp_path / "runs" / "tiny" / "checkpoints"
    assert command("train", tiny).code == 0
    shutil.copytree(checkpoints / "step-000002", checkpoints / f"{prefix}step-000001")
    assert command("train", tiny, "--resume").code == 0
    assert [path.name for path in checkpoints.iterdir()] == ["step-000002"]


def test_a_leftover_of_the_very_step_that_is_saved_again_does_not_get_into_its_checkpoint(command, tiny, tmp_path):
    leftover = tmp_path / "runs" / "tiny" / "checkpoints" / ".unfinished-step-000002"
    assert command("train", tiny, "--set=training.steps=1").code == 0
    leftover.mkdir()
    (leftover / "stray.bin").write_bytes(b"stray")
    assert command("train", tiny, "--resume").code == 0
    assert not leftover.exists()
    assert not (leftover.parent / "step-000002" / "stray.bin").exists()


def test_a_line_that_was_half_written_when_the_process_died_is_left_out(command, tiny, tmp_path):
    run = tmp_path / "runs" / "tiny"
    assert command("train", tiny).code == 0
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert command("train", tiny, "--set=training.steps=3", "--resume").code == 0
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [1, 2, 3]

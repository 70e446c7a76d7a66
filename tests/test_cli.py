"""The command line as a user runs it: tests look at what it prints and which files it writes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.main import get_command

import hopd
from hopd.cli import app
from hopd.horizon import Truncated

RECIPES = Path(__file__).parents[1] / "recipes"
QUICKSTART = RECIPES / "quickstart.yaml"
SHORT = [
    f"--set={setting}"
    for setting in (
        "training.steps=2",
        "rollout.prompts=4",
        "rollout.full_tokens=40",
        "task.steps=1",
        "horizon={controller: truncated, tokens: 8}",
        "evaluation.task={source: addition, steps: 1, size: 4, held_out: true}",
    )
]
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def finished(process, tmp_path_factory):
    """Trains two steps; returns the run's directory and the output. Tests that write use a copy."""
    output = tmp_path_factory.mktemp("runs")
    ended = process("train", QUICKSTART, *SHORT, f"--set=output={output}")
    assert ended.code == 0, ended.err
    return output / "quickstart", ended


def copy_of(run, output):
    shutil.copytree(run, output / run.name)
    return output / run.name


def contents(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_of_every_command_exits_with_0(process, name):
    ended = process(*name.split(), "--help")
    assert (ended.code, ended.err) == (0, "")
    assert f"Usage: python -m hopd {name}" in ended.out


def test_help_lists_every_command(process):
    assert {"train", "check", "eval"} <= set(COMMANDS)
    ended = process("--help")
    assert all(name in ended.out for name in COMMANDS)


def test_version_is_the_version_of_the_package(process):
    ended = process("--version")
    assert (ended.code, ended.out) == (0, f"hopd {hopd.__version__}\n")


def test_no_command_at_all_shows_the_help(process):
    ended = process()
    assert "Usage" in ended.out + ended.err
    assert "Traceback" not in ended.err


def test_help_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from typer.testing import CliRunner; import hopd.cli\n"
        f"for name in {COMMANDS}: assert CliRunner().invoke(hopd.cli.app, [name, '--help']).exit_code == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_check_of_the_quickstart_ends_with_ok_and_writes_nothing(process, tmp_path):
    ended = process("check", QUICKSTART, cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["paper-openmath-1.5b", "paper-r1-distill-1.5b", "smollm2-cpu"])
def test_check_without_weights_passes_recipes_whose_models_are_not_installed(process, name, tmp_path):
    ended = process("check", "--without-weights", RECIPES / f"{name}.yaml", cwd=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == "ok"
    assert list(tmp_path.iterdir()) == []


def test_train_prints_its_evaluations_and_the_run_directory(finished):
    run, ended = finished
    assert ended.err == ""
    assert "step 0: accuracy" in ended.out
    assert "step 2: accuracy" in ended.out
    assert ended.out.splitlines()[-1] == f"done: 2 steps, {run}/"


def test_train_writes_the_files_of_a_run(finished):
    run, _ = finished
    assert {path.name for path in run.iterdir()} >= {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "horizon.jsonl",
        "ledger.json",
        "evaluations.jsonl",
        "scores.jsonl",
        "samples.jsonl",
        "checkpoints",
    }
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [1, 2]
    assert [(line["step"], line["tokens"]) for line in lines(run / "horizon.jsonl")] == [(1, 8), (2, 8)]
    assert [line["step"] for line in lines(run / "evaluations.jsonl")] == [0, 2]
    assert {line["step"] for line in lines(run / "samples.jsonl")} == {0, 2}
    assert not list(run.rglob("*.tmp"))


def test_the_resolved_recipe_of_a_run_loads_and_is_unchanged(finished):
    run, _ = finished
    recipe = hopd.Recipe.load(run / "recipe.yaml")
    assert recipe.yaml() == (run / "recipe.yaml").read_text()
    assert recipe.training.steps == 2
    assert recipe.horizon == Truncated(40, tokens=8)


def test_the_ledger_counts_what_the_steps_generated(finished):
    run, _ = finished
    account = json.loads((run / "ledger.json").read_text())["run"]
    metrics = lines(run / "metrics.jsonl")
    assert account["generated_tokens"] == sum(line["generated_tokens"] for line in metrics) == 2 * 4 * 8
    assert account["trained_tokens"] == sum(line["trained_tokens"] for line in metrics) == 2 * 4 * 8
    assert account["full_rollouts_tokens"] == 2 * 4 * 40
    assert account["serial_tokens"] == sum(line["serial_tokens"] for line in metrics) == 2 * 8
    assert [line["serial_tokens"] for line in lines(run / "evaluations.jsonl")] == [0, 2 * 8]


def test_a_checkpoint_loads_with_from_pretrained_and_generates(finished):
    run, _ = finished
    checkpoint = run / "checkpoints" / "step-000002"
    loaded: Any = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer("472+185*a:", return_tensors="pt").input_ids
    written = model.generate(prompt, max_new_tokens=9, do_sample=False)[0, prompt.shape[1] :]
    assert str(tokenizer.decode(written)).replace(" ", "") == "a472+185:"


def test_a_checkpoint_holds_trained_fp32_weights(finished):
    run, _ = finished
    trained = load_file(run / "checkpoints" / "step-000002" / "model.safetensors")
    before = load_file(Path(hopd.__file__).parent / "quickstart" / "student" / "model.safetensors")
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert trained.keys() == before.keys()
    assert not any(torch.equal(trained[name], before[name].float()) for name in trained)


def test_eval_of_a_checkpoint_returns_what_the_run_measured(process, finished, tmp_path):
    run, _ = finished
    out = tmp_path / "measures.json"
    ended = process("eval", run / "checkpoints" / "step-000002", QUICKSTART, *SHORT, "--out", out)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("accuracy ")
    measures = json.loads(out.read_text())
    assert json.loads(ended.out.partition("\n")[2]) == measures
    of_the_run = lines(run / "evaluations.jsonl")[-1]
    assert {key: of_the_run[key] for key in measures} == measures


def test_eval_greedy_is_the_same_for_every_seed(process, finished, tmp_path):
    run, _ = finished
    outs = []
    for seed in (0, 1):
        outs.append(tmp_path / f"{seed}.json")
        ended = process(
            "eval",
            run / "checkpoints" / "step-000002",
            QUICKSTART,
            *SHORT,
            "--set=evaluation.samples=2",
            f"--set=evaluation.seed={seed}",
            "--greedy",
            "--out",
            outs[-1],
        )
        assert (ended.code, ended.err) == (0, "")
    assert outs[0].read_text() == outs[1].read_text()
    assert json.loads(outs[0].read_text())["samples"] == 1


def test_a_finished_run_that_is_resumed_with_more_steps_continues(process, finished, tmp_path):
    run = copy_of(finished[0], tmp_path)
    more = ["--set=training.steps=3", f"--set=output={tmp_path}", "--resume"]
    ended = process("train", QUICKSTART, *SHORT, *more)
    assert (ended.code, ended.err) == (0, "")
    assert "resumed after step 2 of 3" in ended.out
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [1, 2, 3]
    assert [line["step"] for line in lines(run / "evaluations.jsonl")] == [0, 2, 3]
    assert [line["step"] for line in lines(run / "scores.jsonl")] == [0, 2, 3]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["step-000002", "step-000003"]


def test_a_finished_run_that_is_resumed_changes_neither_weights_nor_lines(process, finished, tmp_path):
    run = copy_of(finished[0], tmp_path)
    before = contents(run)
    ended = process("train", QUICKSTART, *SHORT, f"--set=output={tmp_path}", "--resume")
    assert (ended.code, ended.err) == (0, "")
    after = contents(run)
    assert after.keys() == before.keys()
    changed = {path.name for path in before if after[path] != before[path]}
    assert changed <= {"recipe.yaml", "environment.json", "ledger.json"}  # output and command line differ
    ledger, earlier = (json.loads(files[run / "ledger.json"]) for files in (after, before))
    assert ledger["run"] == earlier["run"]
    assert sum(ledger["redone"]["seconds"].values()) == 0


def test_resume_without_an_earlier_run_starts_one(command, tiny, tmp_path):
    ended = command("train", tiny, "--resume")
    assert ended.code == 0, ended.err
    assert (tmp_path / "runs" / "tiny" / "checkpoints" / "step-000002").is_dir()


def test_train_into_the_directory_of_a_run_is_refused_and_changes_no_file(process, finished):
    run, _ = finished
    before = contents(run)
    ended = process("train", QUICKSTART, *SHORT, f"--set=output={run.parent}")
    assert ended.code == 2
    assert ended.err.startswith(f"hopd: {run} holds another run")
    assert "--resume" in ended.err
    assert contents(run) == before


def test_what_is_printed_has_no_colour_codes_where_there_is_no_terminal(finished):
    assert "\x1b" not in finished[1].out


@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_check_finds_engine_and_learner_in_agreement_on_the_rollouts(command, tiny, checkpointing):
    ended = command("check", tiny, f"--set=training.gradient_checkpointing={checkpointing}")
    assert ended.code == 0, ended.err
    nats = re.search(r"agree to (\S+) nats a token", ended.out)
    assert nats is not None, ended.out
    assert float(nats[1]) < 1e-4
    assert ended.err == ""

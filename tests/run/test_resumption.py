"""A resumed run compares what it finds with what it began with, and repeats its own settings."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

QUICKSTART = Path(str(files("hopd") / "quickstart"))
PROMPTS = [{"prompt": f"{n}72+185*a:", "answer": str(n)} for n in range(8)]
DATED = "{{ strftime_now('%j %H') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def files_of_ones_own(tmp_path, tiny):
    """Settings of a run with prompts, evaluation and teacher in files that a test can change."""
    for name in ("p", "e"):
        write(tmp_path / f"{name}.jsonl", PROMPTS)
    shutil.copytree(QUICKSTART / "teacher", tmp_path / "teacher")
    source = "{{source: file, path: {}.jsonl, prompt: prompt, answer: answer, check: exact}}"
    return [
        f"--set=task={source.format(tmp_path / 'p')}",
        f"--set=evaluation={{task: {source.format(tmp_path / 'e')}, at_start: false}}",
        f"--set=teacher.model={tmp_path / 'teacher'}",
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_weights(tmp_path):
    path = tmp_path / "teacher" / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).mul_(1.01)
    save_file(weights, path, metadata={"format": "pt"})


CHANGES = {
    "the prompts are others: their texts, answers or order differ": lambda at: write(at / "p.jsonl", PROMPTS[::-1]),
    "the prompts are others: 8 became 7": lambda at: write(at / "p.jsonl", PROMPTS[:7]),
    "the evaluation prompts are others: their texts, answers": lambda at: write(
        at / "e.jsonl", [{**row, "answer": "9"} for row in PROMPTS]
    ),
    "the files of the teacher": other_weights,
}


def test_what_changed_is_named_and_refused_unless_it_is_accepted(command, tiny, tmp_path, files_of_ones_own):
    assert command("train", tiny, *files_of_ones_own).code == 0
    more = ["--set=training.steps=3", "--resume"]
    for sentence, change in CHANGES.items():
        for name in ("p", "e"):
            write(tmp_path / f"{name}.jsonl", PROMPTS)
        change(tmp_path)
        ended = command("train", tiny, *more)
        assert ended.code == 2, ended.out
        assert sentence in ended.err
        assert len(ended.err) < 500
    accepted = command("train", tiny, *more, "--accept-changes")
    assert accepted.code == 0, accepted.err
    assert "resumed although the files of the teacher" in accepted.out
    assert command("train", tiny, "--set=training.steps=4", "--resume").code == 0  # it is what the run now has


def test_a_template_that_writes_the_date_is_a_note_and_compare_gives_the_reason(
    tmp_path, monkeypatch, files_of_ones_own
):
    from hopd.assembly.prompts import build_prompts
    from hopd.model import load
    from hopd.recipe import FileSource, RolloutSection
    from hopd.run.marks import changes, prompts_change, prompts_mark

    model = load("package:hopd/quickstart/student")
    source = FileSource(source="file", path=str(tmp_path / "p.jsonl"), prompt="prompt", chat=True)

    def mark(template):
        model.tokenizer.chat_template = template
        return prompts_mark(
            build_prompts(source, model, RolloutSection(prompts=1, full_tokens=8, prompt_tokens=64)),
            source.model_dump(),
            answers=True,
        )

    today, tomorrow = mark(DATED), mark(DATED.replace("%j %H", "%j1%H"))
    tomorrow["template"] = today["template"]  # as the same template gives on another day
    changed, daily = changes({"evaluation prompts": today}, {"evaluation prompts": tomorrow})
    assert not changed
    assert "writes the date (strftime_now), and it was rendered on different days" in daily[0]
    assert prompts_change(today, mark(DATED + "=")).endswith("but the chat template differs")


def test_a_resumed_run_repeats_its_settings_and_a_finished_one_keeps_its_recipe(command, tiny, tmp_path):
    run = tmp_path / "runs" / "tiny"
    assert command("train", tiny, "--set=training.learning_rate=3e-4", "--set=training.schedule=cosine").code == 0
    before = (run / "recipe.yaml").read_text(), (run / "environment.json").read_text()
    assert command("train", tiny, "--resume", "--set=training.steps=1").code == 0
    assert ((run / "recipe.yaml").read_text(), (run / "environment.json").read_text()) == before

    checked = command("check", tiny, "--without-weights")
    assert "holds a run, 2 of 2 steps done" in checked.out
    longer = command("train", tiny, "--resume", "--set=training.steps=8")
    assert longer.code == 0, longer.err
    assert "cosine over 8 steps gives step 3 the rate 0.000256; step 2 had 0.00015" in " ".join(longer.out.split())
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["training"]["learning_rate"], recipe["training"]["steps"]) == (3e-4, 8)

    environment = json.loads((run / "environment.json").read_text())
    assert environment["overrides"][-1] == "training.steps=8"
    assert environment["first_step"] == len(environment["earlier"]) + 1 == 2
    assert environment["earlier"][0]["started"] <= environment["started"] <= environment["ended"]
    assert set(environment["hashes"]) == {"prompts", "student", "teacher"}

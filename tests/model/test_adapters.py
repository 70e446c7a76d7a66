"""Tests adapters: which weights are trained, kept and saved, and the base model as teacher."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from hopd.assembly.models import load_models
from hopd.distiller import Distiller
from hopd.errors import ModelError, RecipeError
from hopd.model import load
from hopd.model.adapters import add_adapters, has_adapters, load_adapters, merge, merged_state_dict, without_adapters
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine, Prompt, Sampling
from hopd.run.progress import Progress

STUDENT, TEACHER = "package:hopd/quickstart/student", "package:hopd/quickstart/teacher"
IDS = torch.arange(1, 25).view(2, 12)


def adapted(seed=0):
    """Returns the quickstart's student with adapters whose B is not zero."""
    model = load(STUDENT)
    add_adapters(model, rank=4, alpha=8, targets="all-linear", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.05, generator=generator)
    return model


@torch.no_grad()
def log_probs(model):
    return model.head.logits(model.hidden(IDS.to(model.device))).log_softmax(-1).cpu()


def recipe(output, name="run", **changes):
    content = {
        "name": name,
        "output": str(output),
        "seed": 3,
        "student": {"model": STUDENT},
        "teacher": {"model": TEACHER},
        "task": {"source": "addition", "steps": 3, "size": 40},
        "rollout": {"prompts": 4, "full_tokens": 60},
        "horizon": {"controller": "progressive", "start": 8, "increment": 4},
        "training": {"steps": 6, "learning_rate": 1e-2},
        "lora": {"rank": 4, "alpha": 8},
        "evaluation": {"task": {"source": "addition", "steps": 2, "size": 4, "held_out": True}, "at_start": False},
        "checkpoint": {"every": 3},
    }
    return Recipe.parse(content | changes)


def distil(recipe, resume=False):
    run = Distiller.of(recipe, resume=resume, progress=Progress(quiet=True))
    run.train()
    return run


def bits(directory: Path, step: int) -> dict[str, bytes]:
    place = directory / "checkpoints" / f"step-{step:06d}"
    return {file: (place / file).read_bytes() for file in ("adapter_model.safetensors", "optimizer.safetensors")}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_trains_adapters_alone_and_resumes_to_the_same_bits(tmp_path, precision):
    settings = {"training": {"steps": 6, "learning_rate": 1e-2, "precision": precision}}
    whole = distil(recipe(tmp_path, "whole", **settings))
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    base = load(STUDENT, dtype=dtype).model.state_dict()
    masters = whole.parts.learner.optimizer.masters
    for name, tensor in whole.parts.student.model.state_dict().items():
        if ".lora_" in name:
            assert name in masters
        else:
            assert name not in masters
            assert torch.equal(tensor.cpu(), base[name.replace(".base_layer", "")])
    assert any(float(m.abs().max()) > 0 for name, m in masters.items() if "lora_B" in name)

    distil(recipe(tmp_path, "parts", **settings))
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-000006")
    distil(recipe(tmp_path, "parts", **settings), resume=True)
    assert bits(tmp_path / "whole", 6) == bits(tmp_path / "parts", 6)
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    losses = [[json.loads(line)["loss"] for line in file] for file in lines]
    assert losses[0] == losses[1]


def test_peft_itself_loads_a_checkpoint(tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = distil(recipe(tmp_path))
    place = tmp_path / "run" / "checkpoints" / "step-000006"
    base = AutoModelForCausalLM.from_pretrained(
        Path(__file__).parents[2] / "src" / "hopd" / "quickstart" / "student", dtype=torch.float32
    )
    theirs = PeftModel.from_pretrained(base, place).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(input_ids=IDS).logits.log_softmax(-1), log_probs(run.parts.student), rtol=1e-4, atol=1e-4
        )


def test_eval_accepts_a_checkpoint_of_adapters(tmp_path, command):
    distil(recipe(tmp_path))
    (tmp_path / "recipe.yaml").write_text((tmp_path / "run" / "recipe.yaml").read_text())
    ended = command("eval", tmp_path / "run" / "checkpoints" / "step-000006", "recipe.yaml", "--out", "measured.json")
    assert ended.code == 0, ended.err
    (in_training,) = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    measured = json.loads((tmp_path / "measured.json").read_text())
    assert {key: in_training[key] for key in measured} == measured


def test_rollouts_use_the_adapters():
    model = adapted()
    prompts = [Prompt(0, torch.tensor([1, 2, 3])), Prompt(1, torch.tensor([4, 5]))]
    rollouts = NativeEngine(model).sample(prompts, 20, Sampling(), seed=0)
    merge(model)
    for rollout in rollouts:
        ids = torch.cat([rollout.prompt.ids, rollout.ids])[None]
        with torch.no_grad():
            logits = model.head.logits(model.hidden(ids))[0, len(rollout.prompt.ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, rollout.ids[:, None])[:, 0]
        torch.testing.assert_close(rollout.log_probs, expected, rtol=1e-3, atol=1e-4)


def test_without_adapters_the_model_is_its_base():
    model, base = adapted(), load(STUDENT)
    assert not torch.allclose(log_probs(model), log_probs(base), atol=1e-2)
    with without_adapters(model.model):
        assert torch.equal(log_probs(model), log_probs(base))
    assert not torch.allclose(log_probs(model), log_probs(base), atol=1e-2)


def test_new_adapters_change_nothing_and_are_a_function_of_the_seed():
    made = []
    for seed in (1, 1, 2):
        torch.rand(seed)  # earlier draws must not matter
        model = load(STUDENT)
        add_adapters(model, rank=4, alpha=8, targets=["q_proj"], seed=seed)
        assert torch.equal(log_probs(model), log_probs(load(STUDENT)))
        made.append({n: p for n, p in model.model.named_parameters() if "lora_A" in n})
    assert {name.split(".")[4] for name in made[0]} == {"q_proj"}
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert not any(torch.equal(made[0][name], made[2][name]) for name in made[0])


def test_merged_weights_compute_the_same():
    model, plain = adapted(), load(STUDENT)
    expected = log_probs(model)
    weights = merged_state_dict(model.model)
    assert weights.keys() == plain.model.state_dict().keys()
    plain.model.load_state_dict(weights)
    torch.testing.assert_close(log_probs(plain), expected, rtol=1e-4, atol=1e-4)
    merge(model)
    assert not has_adapters(model.model)
    torch.testing.assert_close(log_probs(model), expected, rtol=1e-4, atol=1e-4)
    assert merged_state_dict(plain.model).keys() == plain.model.state_dict().keys()


@pytest.fixture
def saved(tmp_path):
    """Returns a directory of adapters, and the model from which it was saved."""
    model = adapted()
    model.model.peft_config["default"].base_model_name_or_path = STUDENT
    model.model.save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters", model


def test_the_base_teaches_a_student_that_came_with_adapters(tmp_path, saved):
    """The student learns its base back, and there is one copy of the weights."""
    directory, _ = saved
    back = recipe(
        tmp_path,
        student={"model": str(directory)},
        teacher={"adapter_disabled": True},
        horizon={"controller": "full"},
        training={"steps": 12, "learning_rate": 1e-2},
    )
    run = distil(back)
    assert run.parts.teachers == {}
    losses = [json.loads(line)["reverse_kl"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
    base = load(STUDENT).model.state_dict()
    assert all(
        torch.equal(base[n.replace(".base_layer", "")], t.cpu())
        for n, t in run.parts.student.model.state_dict().items()
        if ".lora_" not in n
    )


def test_without_a_lora_section_adapters_are_merged_into_the_student(tmp_path, saved):
    directory, model = saved
    plain = load_models(recipe(tmp_path, student={"model": str(directory)}, lora=None), "cpu").student
    assert not has_adapters(plain.model)
    assert all(parameter.requires_grad for parameter in plain.model.parameters())
    torch.testing.assert_close(log_probs(plain), log_probs(model), rtol=1e-4, atol=1e-4)


def test_adapters_that_cannot_work_are_errors_that_say_why(tmp_path, saved):
    directory, _ = saved
    with pytest.raises(RecipeError, match="rank 4 and alpha 8; write the same"):
        load_models(recipe(tmp_path, student={"model": str(directory)}, lora={"rank": 2, "alpha": 8}), "cpu")
    with pytest.raises(RecipeError, match="write lora"):
        recipe(tmp_path, teacher={"adapter_disabled": True}, lora=None)
    with pytest.raises(RecipeError, match=r"unknown key teacher.modle \(did you mean 'model'\?\)"):
        recipe(tmp_path, teacher={"model": TEACHER, "modle": 1})
    with pytest.raises(ModelError, match="cannot have these adapters"):
        add_adapters(load(STUDENT), 4, 8, ["no_such_layer"], 0)
    with pytest.raises(ModelError, match=r"lora\.targets names the vocabulary head"):
        add_adapters(load(STUDENT), 4, 8, ["lm_head"], 0)
    config = json.loads((directory / "adapter_config.json").read_text())
    (directory / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ModelError, match="holds adapters with use_dora"):
        load(str(directory))
    (directory / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    with pytest.raises(ModelError, match="do not fit"):
        load_adapters(load(STUDENT), directory)

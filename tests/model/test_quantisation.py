"""Tests that quantised models are made plain, or refused before any work."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hopd.distiller import Distiller
from hopd.errors import ModelError
from hopd.model import load
from hopd.model.loading import resolve
from hopd.recipe import Recipe
from hopd.run.progress import Progress
from tests.model.architectures import QUICKSTART, save, tiny

IDS = torch.arange(1, 25).view(2, 12)
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
FP4 = torch.cat([FP4, -FP4])
REFUSED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes_4bit": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes_8bit": {"load_in_8bit": True},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
    "hqq": {"quant_method": "hqq"},
    "torchao": {"quant_method": "torchao"},
    "of tomorrow": {"quant_method": "of tomorrow"},
}


def quantised(place: Path, rest: torch.dtype, settings: object = FP8) -> str:
    """Writes the quickstart's student with its linear weights in FP8, a scale per block, and the rest in `rest`."""
    shutil.copytree(resolve(QUICKSTART), place)
    stored = {}
    for name, weight in load_file(place / "model.safetensors").items():
        stored[name] = weight.to(rest)
        if "_proj" in name:
            scale = weight.float().abs().max() / 448
            stored[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = torch.full([size // 16 for size in weight.shape], float(scale))
    save_file(stored, place / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return str(place)


@torch.no_grad()
def logits(model):
    return model.model(IDS).logits.float()


@pytest.mark.parametrize("rest", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_block_scaled_fp8_becomes_plain_weights_that_can_be_saved(tmp_path, rest, dtype):
    source = quantised(tmp_path / "fp8", rest)
    for model in (load(source, dtype=dtype), load(source, dtype=dtype, quantised=True)):
        assert {parameter.dtype for parameter in model.model.parameters()} == {dtype}
        assert model.notes == [f"{source} is quantised (fp8); plain weights were made of it"]
        original = logits(load(QUICKSTART, dtype=dtype))
        assert float((logits(model) - original).norm() / original.norm()) < 0.1
    model.model.save_pretrained(tmp_path / "again")
    model.tokenizer.save_pretrained(tmp_path / "again")
    again = load(str(tmp_path / "again"), dtype=dtype)
    assert not again.notes
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("method", REFUSED)
def test_what_cannot_be_made_plain_is_refused_as_a_student(tmp_path, method):
    source = quantised(tmp_path / "model", torch.float32, REFUSED[method])
    with pytest.raises(
        ModelError, match=rf"is quantised \({method}\), and transformers cannot make plain weights"
    ) as e:
        load(source)
    assert len(str(e.value).replace(source, "")) <= 300


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes_4bit", "of tomorrow"])
def test_a_teacher_whose_packages_are_missing_is_refused(tmp_path, method):
    with pytest.raises(ModelError, match=r"is quantised \(" + method):
        load(quantised(tmp_path / "model", torch.float32, REFUSED[method]), quantised=True)


def test_scales_that_the_config_does_not_tell_of_are_refused(tmp_path):
    source = quantised(tmp_path / "model", torch.float32, None)
    with pytest.raises(ModelError, match=r"config\.json does not tell: its weights hold .*weight_scale_inv"):
        load(source)


def test_a_run_of_a_quantised_student_saves_what_it_trained_and_resumes(tmp_path):
    source = quantised(tmp_path / "fp8", torch.bfloat16)
    content = {
        "name": "run",
        "output": str(tmp_path),
        "student": {"model": source},
        "teacher": {"model": "package:hopd/quickstart/teacher"},
        "task": {"source": "addition", "steps": 3, "size": 40},
        "rollout": {"prompts": 4, "full_tokens": 60},
        "horizon": {"controller": "truncated", "tokens": 8},
        "training": {"steps": 2, "learning_rate": 1e-3},
    }

    run = Distiller.of(Recipe.parse(content), progress=Progress(quiet=True))
    run.train()
    trained = logits(run.parts.student)
    assert torch.equal(logits(load(str(tmp_path / "run" / "checkpoints" / "step-000002"))), trained)
    resumed = Distiller.of(Recipe.parse(content), resume=True, progress=Progress(quiet=True))
    assert torch.equal(logits(resumed.parts.student), trained)


def test_experts_in_mxfp4_become_plain(tmp_path):
    """A block is 32 numbers of four bits, the lower half of a byte first, with an exponent of its own."""
    model = tiny("gpt_oss", hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    source = Path(save(model, tmp_path / "mxfp4"))
    stored = load_file(source / "model.safetensors")
    expected = {}
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, rows, columns = stored.pop(name).mT.shape
        blocks = torch.randint(256, (experts, rows, columns // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(120, 124, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        halves = torch.stack([blocks % 16, blocks // 16], dim=-1).flatten(-2).long()
        exponents = torch.exp2(scales[..., None].float() - 127)
        expected[name] = (FP4[halves] * exponents).view(experts, rows, columns).mT
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "mxfp4"}}))
    state = load(str(source)).model.state_dict()
    assert expected
    for name, weight in expected.items():
        assert torch.equal(state[name], weight)

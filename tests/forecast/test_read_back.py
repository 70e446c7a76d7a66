"""Tests that preflight saves the student, reads it back, and finds what a checkpoint would lose."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hopd.assembly import build
from hopd.errors import ModelError
from hopd.forecast import read_back
from hopd.forecast.read_back import check_saved
from hopd.recipe import Recipe
from tests.model.architectures import QUICKSTART, save, tiny

LORA: dict[str, Any] = {"lora": {"rank": 4, "alpha": 8}}


def parts_of(output, student=QUICKSTART, precision="fp32", **changes):
    content = {
        "name": "run",
        "output": str(output / "runs"),
        "student": {"model": student},
        "teacher": {"model": student},
        "task": {"source": "addition", "steps": 3, "size": 40},
        "rollout": {"prompts": 4, "full_tokens": 20},
        "horizon": {"controller": "full"},
        "training": {"steps": 2, "learning_rate": 1e-3, "precision": precision},
    }
    return build(Recipe.parse(content | changes))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    return save(tiny("mixtral", max_position_embeddings=64), tmp_path_factory.mktemp("models") / "mixtral")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, LORA], ids=["all", "adapters"])
@pytest.mark.parametrize("kind", ["quickstart", "mixture"])
def test_a_student_that_can_be_saved_is_as_it_was_before(tmp_path, mixture, kind, precision, changes):
    parts = parts_of(tmp_path, mixture if kind == "mixture" else QUICKSTART, precision, **changes)
    before = {name: tensor.clone() for name, tensor in parts.student.model.state_dict().items()}
    sentence = check_saved(parts)
    how = "merged and read back" if changes else "read back"
    assert sentence == f"checkpoint: saved, {how}, the student computes the same"
    after = parts.student.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not list(tmp_path.iterdir())


def double(module, inputs, output):
    return 2 * output


@pytest.mark.parametrize("changes", [{}, LORA], ids=["all", "adapters"])
def test_what_a_checkpoint_would_lose_is_found(tmp_path, mixture, changes):
    """A hook stands for all that a model computes beside its saved weights."""
    parts = parts_of(tmp_path, mixture, **changes)
    layer: Any = parts.student.backbone.get_submodule("layers.0.self_attn.q_proj")
    (layer.lora_B["default"] if changes else layer).register_forward_hook(double)
    with pytest.raises(ModelError, match=r"has other logits, by .* %: what is trained could not be used"):
        check_saved(parts)


def test_a_checkpoint_that_cannot_be_read_is_found(tmp_path, mixture):
    parts = parts_of(tmp_path, mixture)
    parts.student.model.config.vocab_size += 1
    with pytest.raises(ModelError, match="saved as a checkpoint, cannot be read back: cannot load"):
        check_saved(parts)


def test_without_room_a_sentence_says_so(tmp_path, monkeypatch):
    parts = parts_of(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**9, 10**9, 10**3))
    assert "and" in check_saved(parts)
    assert "GB" in check_saved(parts)
    monkeypatch.undo()
    monkeypatch.setattr(read_back, "device_memory", lambda device: 1e6)
    assert "of memory, twice for a moment" in check_saved(parts)
    monkeypatch.setattr(read_back, "LARGEST", 1e3)
    assert "try the first one with hopd eval" in check_saved(parts)
    assert not Path(tmp_path / "runs").exists()

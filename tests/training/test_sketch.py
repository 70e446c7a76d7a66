"""A sketch of gradients is true, belongs to its block, and changes nothing of the training."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    Phi3Config,
)

from hopd.distiller import Distiller
from hopd.errors import ModelError
from hopd.horizon import Evidence, Full, Whole
from hopd.model import LanguageModel, load
from hopd.model.adapters import add_adapters
from hopd.model.flops import PassCost
from hopd.objective import Full as FullDivergence
from hopd.objective import Sampled
from hopd.processes import Processes
from hopd.recipe import Recipe, TrainingSection
from hopd.rollout import FinishReason, NativeEngine, Prompt, Sampling
from hopd.run.ledger import Ledger
from hopd.run.progress import Progress
from hopd.tasks import RepeatedAddition
from hopd.teacher import LocalTeacher
from hopd.training.block_sums import BLOCKS, BlockSums, block_edges
from hopd.training.learner import Learner
from hopd.training.optimizer import MasterOptimizer
from hopd.training.sketch import SIDE, Sketch, separate_layers
from hopd.training.statistics import StepStatistics

STUDENT, TEACHER = "package:hopd/quickstart/student", "package:hopd/quickstart/teacher"
FULL_TOKENS = 47  # tenths of four and five tokens
SMALL: dict[str, Any] = {"vocab_size": 45, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
LLAMA = LlamaConfig(**SMALL, hidden_size=SIDE, intermediate_size=SIDE)


def made(config, dtype=torch.float64):
    """Returns a model of this configuration with random weights, larger than at the start of a training."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():
        parameter.data *= 3 if parameter.dim() > 1 else 1
    return LanguageModel(model, load(STUDENT).tokenizer)


@pytest.fixture(scope="module")
def models():
    """Student and teacher in float64."""
    student, teacher = load(STUDENT), load(TEACHER)
    student.model.double(), teacher.model.double()
    return student, teacher


def sample(student, samples=1):
    ids = [student.tokenizer(problem.prompt).input_ids for problem in RepeatedAddition(3, 6).problems]
    prompts = [Prompt(i, torch.tensor(prompt)) for i, prompt in enumerate(ids)]
    return NativeEngine(student).sample(prompts, FULL_TOKENS, Sampling(), seed=0, samples=samples)


@pytest.fixture(scope="module")
def rollouts():
    """Six whole rollouts, three that stopped by themselves after 20 tokens, and three that were cut after 31."""
    sampled = sample(load(STUDENT), samples=2)
    stopped = [
        replace(one, ids=one.ids[:20], log_probs=one.log_probs[:20], finish=FinishReason.STOP) for one in sampled
    ]
    cut = [replace(one, ids=one.ids[:31], log_probs=one.log_probs[:31]) for one in sampled]
    return sampled[:6] + stopped[6:9] + cut[9:]


def learner(models, tmp_path, sketch, objective=None, window=None, tokens_per_batch=8192):
    student, teacher = models
    return Learner(
        student=student,
        teacher=LocalTeacher(teacher),
        student_cost=PassCost.of(student),
        teacher_costs={None: PassCost.of(teacher)},
        objective=objective or FullDivergence(),
        window=window or Whole(),
        optimizer=MasterOptimizer(student.model, TrainingSection(steps=1, learning_rate=1e-4), 1),
        ledger=Ledger(tmp_path / "ledger.json"),
        processes=Processes(),
        temperature=1.0,
        tokens_per_batch=tokens_per_batch,
        sketch=sketch,
    )


def sketched(models, tmp_path, rollouts, sketch=None, **options):
    """Returns what one step's sketches show."""
    making = learner(models, tmp_path, sketch or Sketch.of(models[0], FULL_TOKENS), **options)
    statistics = StepStatistics(FULL_TOKENS)
    making.accumulate(rollouts, 0, statistics)
    models[0].model.zero_grad()
    found = statistics.evidence(0, FULL_TOKENS).gradients
    assert found is not None
    return found


def exact(models, tmp_path, rollouts, layers, **options):
    """Returns the same from whole gradients of the layers' matrices: a backward pass for each rollout and block."""
    making = learner(models, tmp_path, None, **options)
    weights = [layer.weight for layer in layers]
    edges = block_edges(FULL_TOKENS).tolist()
    sums = BlockSums.zeros(sum(weight.numel() for weight in weights))
    for rollout in rollouts:
        (batch,) = making.batches([rollout], 0)
        gradients = []
        for start, end in pairwise(edges):
            inside = (batch.at.position >= start) & (batch.at.position < end)
            here = replace(batch, at=replace(batch.at, weight=batch.at.weight * inside))
            found = torch.autograd.grad(making.loss(here)[0], weights)
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))
        has = [rollout.finish is FinishReason.STOP or rollout.length >= end for end in edges[1:]]
        sums.add(torch.stack(gradients)[None], torch.tensor([has]))
    return sums.gradients()


def close(found, expected, rtol=1e-4):
    products, others = torch.tensor(found.products), torch.tensor(expected.products)
    torch.testing.assert_close(products, others, rtol=rtol, atol=rtol * float(others.abs().max()))
    assert found.noise == pytest.approx(expected.noise, rel=rtol, abs=rtol * max(expected.noise))
    assert found.pairs == expected.pairs


@pytest.mark.parametrize("objective", [FullDivergence(), Sampled(gamma=0.9)], ids=lambda o: o.estimator)
@pytest.mark.parametrize("place", range(4))
def test_without_a_projection_it_is_the_gradient(tmp_path, rollouts, place, objective):
    """The identity in place of the signs, where a layer is as wide as they are."""
    models = made(LLAMA), made(LLAMA)
    with torch.no_grad():
        models[1].model.lm_head.weight.mul_(2)
    layer = separate_layers(models[0])[place]
    sketch = Sketch([layer], FULL_TOKENS)
    sketch.watched[0].signs = {name: SIDE**0.5 * torch.eye(SIDE, dtype=torch.float64) for name in ("x", "delta")}
    found = sketched(models, tmp_path, rollouts, sketch, objective=objective)
    expected = exact(models, tmp_path, rollouts, [layer], objective=objective)
    assert min(expected.products[b][b] for b in range(5)) != 0
    close(found, expected)


def test_a_sketch_is_as_near_as_its_numbers_allow_and_right_in_the_mean(models, tmp_path, rollouts):
    """An inner product errs by at most 2/√SIDE of the norms, one standard deviation for matrices of rank one."""
    layers = separate_layers(models[0])
    expected = exact(models, tmp_path, rollouts, layers)
    true = torch.tensor(expected.products)
    norms = (true.diagonal() + torch.tensor(expected.noise)).sqrt()
    bound = 2 / SIDE**0.5 * norms[:, None] * norms
    drawn = torch.stack(
        [
            torch.tensor(sketched(models, tmp_path, rollouts, Sketch(layers, FULL_TOKENS, seed)).products)
            for seed in range(24)
        ]
    )
    assert ((drawn[0] - true).abs() <= bound).all()
    assert ((drawn.mean(0) - true).abs() <= 4 * drawn.std(0) / len(drawn) ** 0.5).all()
    assert float((drawn[0] - true).abs().max()) > 0


def test_inputs_and_gradients_have_signs_of_their_own(models, tmp_path, rollouts):
    sketch = Sketch.of(models[0], FULL_TOKENS)
    sketched(models, tmp_path, rollouts[:2], sketch)
    drawn = [watched.signs[name][:, :128].double() for watched in sketch.watched for name in ("x", "delta")]
    for place, one in enumerate(drawn):
        assert all(abs(float((one * other).mean())) < 0.1 for other in drawn[:place])
        assert one.abs().unique().tolist() == [1]


@pytest.mark.parametrize("tokens_per_batch", [1, 120, 300])
def test_micro_batches_and_order_change_nothing(models, tmp_path, rollouts, tokens_per_batch):
    shuffled = [rollouts[i] for i in torch.randperm(len(rollouts)).tolist()]
    split = sketched(models, tmp_path, shuffled, tokens_per_batch=tokens_per_batch)
    close(split, sketched(models, tmp_path, rollouts))


def test_the_number_of_tokens_in_a_step_changes_nothing(models, tmp_path, rollouts):
    """The loss is divided by that number, so a gradient of more rollouts would seem smaller."""
    same = [replace(rollouts[0], sample=i) for i in range(2)], [replace(rollouts[0], sample=i) for i in range(5)]
    two, five = (sketched(models, tmp_path, some) for some in same)
    torch.testing.assert_close(torch.tensor(two.products), torch.tensor(five.products), rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class One:
    """Keeps one token."""

    position: int

    def span(self, length, uniform):
        return self.position, self.position + 1


@pytest.mark.parametrize(("position", "block"), [(0, 0), (4, 0), (5, 1), (23, 4), (24, 5), (46, 9)])
def test_a_token_belongs_to_its_block_alone(models, tmp_path, rollouts, position, block):
    found = sketched(models, tmp_path, rollouts[:6], window=One(position), tokens_per_batch=120)
    others = torch.ones(BLOCKS, BLOCKS, dtype=torch.bool)
    others[block, block] = False
    products = torch.tensor(found.products)
    assert products[block, block] != 0
    assert not products[others].any()
    assert [noise > 0 for noise in found.noise] == [b == block for b in range(BLOCKS)]


def test_a_rollout_that_was_cut_knows_nothing_of_later_blocks(models, tmp_path, rollouts):
    whole, stopped, cut = rollouts[:6], rollouts[6:9], rollouts[9:]
    assert [len(some) for some in (whole, stopped, cut)] == [6, 3, 3]
    found = sketched(models, tmp_path, rollouts)
    assert [found.pairs[b][b] for b in range(BLOCKS)] == [12 * 11] * 6 + [9 * 8] * 4  # block 6 ends at token 33
    assert found.pairs[0][9] == 12 * 9 - 9
    of_whole = sketched(models, tmp_path, whole)
    # The three that stopped before are zeros: of 72 pairs, 30 are of rollouts that have tokens there.
    assert found.products[9][9] == pytest.approx(of_whole.products[9][9] * 30 / 72, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        (LLAMA, ["self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        (
            Phi3Config(**SMALL, hidden_size=32, intermediate_size=32, pad_token_id=0),
            ["self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"],
        ),
        (GPT2Config(vocab_size=45, n_layer=2, n_head=2, n_embd=32), ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        (
            GPTNeoXConfig(**SMALL, hidden_size=32, intermediate_size=32),
            ["attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"],
        ),
        (MixtralConfig(**SMALL, hidden_size=32, intermediate_size=32, num_local_experts=2), ["self_attn.o_proj"]),
        (MambaConfig(vocab_size=45, num_hidden_layers=2, hidden_size=32), ["mixer.out_proj"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_layers_behind_the_last_mixing_of_positions_are_chosen(config, chosen):
    student = made(config, torch.float32)
    names = {layer: name.partition(".1.")[2] for name, layer in student.model.named_modules()}
    assert [names[layer] for layer in separate_layers(student)] == chosen


def adapted(targets):
    student = load(STUDENT)
    add_adapters(student, rank=4, alpha=8, targets=targets, seed=0)
    for name, parameter in student.model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return student


def test_of_adapters_the_trained_matrices_are_chosen():
    student = adapted("all-linear")
    names = {layer: name for name, layer in student.model.named_modules()}
    assert [names[layer].partition("layers.2.")[2] for layer in separate_layers(student)] == [
        f"{layer}.lora_{matrix}.default"
        for layer in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        for matrix in "AB"
    ]


@pytest.mark.parametrize("targets", [["q_proj"], ["q_proj", "k_proj", "v_proj"]])
def test_adapters_before_the_attention_alone_cannot_be_sketched(targets):
    with pytest.raises(ModelError, match="no trained matrix behind which positions no longer mix"):
        separate_layers(adapted(targets))


def recipe(output, **changes):
    content = {
        "name": "run",
        "output": str(output),
        "student": {"model": STUDENT},
        "teacher": {"model": TEACHER},
        "task": {"source": "addition", "steps": 3, "size": 40},
        "rollout": {"prompts": 6, "full_tokens": 60},
        "horizon": {"controller": "full"},
        "training": {"steps": 2, "learning_rate": 1e-3, "tokens_per_batch": 256},
    }
    for key, value in changes.items():
        content[key] = content.get(key, {}) | value
    return Recipe.parse(content)


def trained(recipe, **options):
    """Returns the weights, as bytes, and the lines of metrics.jsonl."""
    torch.manual_seed(0)
    run = Distiller.of(recipe, progress=Progress(quiet=True), **options).train()
    weights = {
        path.name: path.read_bytes() for path in run.directory.path.glob("checkpoints/step-000002/*.safetensors")
    }
    return weights, [json.loads(line) for line in (run.directory.path / "metrics.jsonl").read_text().splitlines()]


CASES: list[dict[str, Any]] = [
    {},
    {"training": {"precision": "bf16"}},
    {"training": {"gradient_checkpointing": True}},
    {"lora": {"rank": 4, "alpha": 8}},
    {"window": {"kind": "first", "tokens": 20}, "objective": {"estimator": "sampled", "gamma": 0.9}},
]


@pytest.mark.parametrize("changes", CASES, ids=["plain", "bf16", "checkpointing", "lora", "window"])
def test_not_a_bit_of_the_training_changes(tmp_path, changes):
    without, lines = trained(recipe(tmp_path / "without", **changes))
    sketches = changes | {"horizon": {"controller": "full", "sketches": True}}
    weights, measured = trained(recipe(tmp_path / "with", **sketches))
    assert weights == without
    assert len(weights) >= 2
    timed = {"seconds", "peak_memory"}
    for line, other in zip(measured, lines, strict=True):
        gradients = line.pop("gradients")
        assert {k: v for k, v in line.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
        assert sum(gradients["noise"]) > 0
    assert (measured[0]["loss"], measured[0]["step"]) == (lines[0]["loss"], 1)


@pytest.mark.parametrize(("changes", "rtol"), [(CASES[1], 0.1), (CASES[2], 1e-3)], ids=["bf16", "checkpointing"])
def test_precision_and_recomputing_leave_what_is_measured(tmp_path, changes, rtol):
    found = []
    for training in (dict[str, Any](), changes["training"]):
        student, teacher = load(STUDENT), load(TEACHER)
        sampled = sample(load(STUDENT))
        settings = TrainingSection(steps=1, learning_rate=1e-4, **training)
        making = learner((student, teacher), tmp_path, Sketch.of(student, FULL_TOKENS))
        making.optimizer = MasterOptimizer(student.model, settings, 1)
        if settings.gradient_checkpointing:
            student.checkpoint_activations()
        statistics = StepStatistics(FULL_TOKENS)
        making.accumulate(sampled, 0, statistics)
        assert statistics.gradients is not None
        found.append(torch.tensor(statistics.gradients.gradients().products))
    torch.testing.assert_close(found[1], found[0], rtol=rtol, atol=rtol * float(found[0].abs().max()))


class Watching(Full):
    """Keeps its evidence."""

    seen: list[Evidence] = []

    def observe(self, evidence):
        self.seen.append(evidence)


def test_a_controller_that_asks_finds_gradients_in_its_evidence(tmp_path):
    Watching.seen.clear()
    _, lines = trained(recipe(tmp_path), controller=Watching(60, sketches=True))
    seen = [evidence.gradients for evidence in Watching.seen if evidence.gradients]
    assert [len(gradients.products) for gradients in seen] == [BLOCKS] * 2
    for gradients, line in zip(seen, lines, strict=True):
        assert line["gradients"]["noise"] == pytest.approx(gradients.noise, rel=1e-3)
        assert line["gradients"]["products"][0] == pytest.approx(gradients.products[0], rel=1e-3)
    assert not any("gradients" in line for line in trained(recipe(tmp_path / "other"))[1])


def test_where_the_student_allows_no_sketch_a_note_says_so(tmp_path):
    from hopd.assembly import build

    lora = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"]}
    parts = build(recipe(tmp_path, lora=lora, horizon={"sketches": True}), progress=Progress(quiet=True))
    assert parts.learner.sketch is None
    assert any("the controller asks for sketches of gradients and gets none" in note for note in parts.notes)

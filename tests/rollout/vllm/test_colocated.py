"""Trains SmolLM2-135M with a colocated vLLM: its rollouts equal the native engine's."""

import json
from importlib.util import find_spec

import pytest
import torch

from hopd import Distiller, Recipe
from hopd.errors import EngineError
from hopd.forecast.preflight import preflight
from hopd.model import load
from hopd.model.adapters import add_adapters
from hopd.rollout import FinishReason, NativeEngine, Prompt, Sampling
from hopd.rollout.vllm.transfer import InProcess, Source
from hopd.rollout.weight_sync import WeightSync
from hopd.run.progress import Progress
from tests.rollout.native.test_engine import SMOLLM2, plain_log_probs
from tests.rollout.vllm.stretches import begin, continued
from tests.teacher.scripted import metrics

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.smollm2,
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed in hopd's environment: make test-vllm"),
]

GREEDY = Sampling(temperature=0.0)
LOG_PROBS = 5e-3  # nats a token, in float32
QUESTIONS = [
    "What is the capital of France?",
    "Say hello.",
    "Explain in two sentences why the sky is blue, and then name three colours of the rainbow.",
    "2 + 2 =",
]
RECIPE = """
name: colocated
output: {output}
student: {{model: "{smollm2}"}}
teacher: {{model: "{smollm2}", layers: [0, 1, 2, 3, 4, 5, 6, 7, 28, 29]}}
task: {{source: file, path: {output}/prompts.jsonl, chat: true}}
rollout:
  prompts: 4
  prompt_tokens: 128
  full_tokens: 64
  temperature: 0.7
  engine: {{kind: vllm, memory: 0.1, eager: true}}
horizon: {{controller: truncated, tokens: 12}}
training: {{steps: 2, learning_rate: 1e-4, attention: sdpa}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trains with a small teacher, which only has to be another model."""
    output = tmp_path_factory.mktemp("colocated")
    patch = pytest.MonkeyPatch()
    for name, value in {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}.items():
        patch.setenv(name, value)
    (output / "prompts.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS))
    path = output / "recipe.yaml"
    path.write_text(RECIPE.format(output=output, smollm2=SMOLLM2))
    distiller = Distiller.of(Recipe.load(path), progress=Progress(quiet=True))
    for line in preflight(distiller.parts):
        print(line)
    distiller.train()
    yield distiller
    patch.undo()


@pytest.fixture(scope="module")
def chats(run):
    return list(run.parts.prompts.prompts)


def assert_same(made, expected):
    assert [(r.prompt.id, r.ids.tolist(), r.finish) for r in made] == [
        (r.prompt.id, r.ids.tolist(), r.finish) for r in expected
    ]
    difference = max(float((a.log_probs - b.log_probs).abs().max()) for a, b in zip(made, expected, strict=True))
    print(f"log-probs differ by at most {difference:.2g}")
    assert difference < LOG_PROBS


def test_what_it_samples_is_what_is_trained(run):
    lines = metrics(run.parts.directory.path)
    assert [line["step"] for line in lines] == [1, 2]
    print(
        "mismatch:",
        [line["mismatch"] for line in lines],
        "fingerprint:",
        [line["weight_sync_difference"] for line in lines],
    )
    assert max(line["mismatch"] for line in lines) < 1e-3
    assert max(line["weight_sync_difference"] for line in lines) < 1e-3


def test_greedy_rollouts_equal_the_native_engines_after_training(run, chats):
    assert isinstance(run.parts.engine, WeightSync)
    assert_same(
        run.parts.engine.sample(chats, 40, GREEDY, 0), NativeEngine(run.parts.student).sample(chats, 40, GREEDY, 0)
    )


def test_greedy_rollouts_that_continue_equal_uninterrupted_ones(run, chats):
    engine = run.parts.engine
    made = continued(engine, begin(chats), (5, 18, 40), GREEDY)
    assert_same(made, engine.sample(chats, 40, GREEDY, 0))
    assert_same(made, NativeEngine(run.parts.student).sample(chats, 40, GREEDY, 0))


def adapt(model):
    """Adds adapters that change what the model samples."""
    add_adapters(model, 4, 8, "all-linear", seed=0)
    for name, parameter in model.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))


def test_adapters_are_merged_on_the_way(run, chats):
    pytest.importorskip("peft")
    adapted = load(SMOLLM2)
    plain = NativeEngine(adapted).sample(chats, 24, GREEDY, 0)
    adapt(adapted)
    synced = WeightSync(run.parts.engine.engine, adapted, run.parts.processes, torch.float32)
    made = synced.sample(chats, 24, GREEDY, 0)
    assert_same(made, NativeEngine(adapted).sample(chats, 24, GREEDY, 0))
    assert [r.ids.tolist() for r in made] != [r.ids.tolist() for r in plain]


def test_after_an_update_rollouts_continue_with_the_new_weights(run, chats):
    """One prompt is long enough to be in vLLM's prefix cache when the weights change."""
    pytest.importorskip("peft")
    text = " ".join(QUESTIONS * 4)
    long = Prompt(20, torch.tensor(run.parts.student.tokenizer(text).input_ids[:140]))
    sampling = Sampling(temperature=0.7)
    begun = continued(run.parts.engine, begin([*chats, long], seed=5), (12,), sampling)
    adapted = load(SMOLLM2)
    adapt(adapted)
    synced = WeightSync(run.parts.engine.engine, adapted, run.parts.processes, torch.float32)
    longer = continued(synced, begun, (30,), sampling)
    for before, after in zip(begun, longer, strict=True):
        assert torch.equal(after.ids[: before.length], before.ids)
        assert torch.equal(after.log_probs[: before.length], before.log_probs)
        difference = (plain_log_probs(adapted, after, 0.7) - after.log_probs).abs()
        old, new = difference[: before.length].max(), difference[before.length :].max() if after is not before else 0.0
        print(f"log-probs differ by at most {old:.2g} before and {new:.2g} after")
        assert new < LOG_PROBS
        assert old > 10 * LOG_PROBS  # old weights would be noticed
    assert [rollout.length for rollout in longer].count(30) > 2


def test_a_prefix_cache_that_is_kept_is_an_error(run, chats, monkeypatch):
    monkeypatch.setattr(run.parts.engine.engine._llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(EngineError, match="has not emptied its prefix cache"):
        run.parts.engine.sample(chats, 2, GREEDY, 0)


def test_vllms_transfers_take_what_they_are_given():
    """Without a GPU no weights are sent, but names and fields must exist in the installed vLLM."""
    from vllm.distributed.weight_transfer.base import VLLMWeightSyncClient
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    assert IPCTrainerInitInfo(rank=0, packed=True).is_sender
    assert NCCLTrainerInitInfo(rank=0, master_address="127.0.0.1", master_port=1, world_size=2).is_sender
    assert isinstance(InProcess(None), VLLMWeightSyncClient)
    source = Source()
    source.weights = {"a": torch.zeros(2, 3), "b": torch.ones(4)}
    described = [(each.name, each.dtype, each.shape) for each in source.metadata()]
    assert described == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]


def test_it_stops_where_the_student_does(run, chats):
    made = run.parts.engine.sample(chats, 64, GREEDY, 0)
    assert {rollout.finish for rollout in made} <= {FinishReason.STOP, FinishReason.HORIZON}
    for rollout in made:
        assert (int(rollout.ids[-1]) in run.parts.student.stop_ids) == (rollout.finish is FinishReason.STOP)

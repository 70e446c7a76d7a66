"""Compares FLOPs with torch's own counter, and tests the ledger's arithmetic."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hopd.model import LanguageModel, load
from hopd.model.adapters import add_adapters
from hopd.model.flops import PassCost
from hopd.model.loading import resolve
from hopd.processes import Processes
from hopd.run.ledger import Account, Ledger

STUDENT = "package:hopd/quickstart/student"


def tiny(kind):
    config = AutoConfig.for_model(
        kind,
        vocab_size=48,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        **({"num_key_value_heads": 2} if kind != "gpt2" else {"n_embd": 64, "n_layer": 3, "n_head": 4}),
    )
    config.eos_token_id, config.pad_token_id, config.bos_token_id = 1, 0, 2
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return LanguageModel(model, AutoTokenizer.from_pretrained(str(resolve(STUDENT))))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_forward_pass_costs_what_torch_counts(kind):
    model, length = tiny(kind), 12
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.head.logits(model.hidden(torch.arange(length)[None])[0])
    cost = PassCost.of(model)
    # torch counts the whole square of attention scores, hopd only the past.
    future = cost.attention * (length**2 - length * (length + 1) / 2)
    assert cost.forward([length], length) + future == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("adapters", [False, True])
def test_a_training_pass_costs_what_torch_counts(adapters):
    model, length = tiny("llama"), 12
    if adapters:
        add_adapters(model, rank=4, alpha=8, targets="all-linear", seed=0)
    with FlopCounterMode(display=False) as counter:
        model.head.logits(model.hidden(torch.arange(length)[None])[0]).sum().backward()
    cost = PassCost.of(model)
    future = 3 * cost.attention * (length**2 - length * (length + 1) / 2)
    counted = cost.forward([length], length) + cost.backward([length], length) + future
    # With adapters torch computes no gradient of the first layer's input.
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.1 if adapters else 0.01)
    assert cost.trained < 0.3 if adapters else cost.trained == 1


def test_generating_costs_one_pass_over_prompt_and_response():
    """Decoding needs the head at response positions only, and never reads the last token."""
    cost = PassCost.of(load(STUDENT))
    p, t = 10, 50
    assert cost.generate([(p, t)], [p]) == pytest.approx(cost.forward([p + t - 1], t))
    shared = cost.generate([(p, t)] * 4, [p])
    assert shared < 4 * cost.generate([(p, t)], [p])


accounts = st.builds(
    Account,
    generated_tokens=st.integers(0, 10**9),
    trained_tokens=st.integers(0, 10**9),
    flops=st.dictionaries(st.sampled_from(["rollout", "update", "evaluation"]), st.integers(0, 10**12).map(float)),
)


@given(accounts, accounts)
def test_accounts_add_and_subtract(a, b):
    total = a + b
    assert total.generated_tokens == a.generated_tokens + b.generated_tokens
    assert total.training_flops == a.training_flops + b.training_flops
    assert (total - b).generated_tokens == a.generated_tokens
    assert sum((total - b).flops.values()) == sum(a.flops.values())


class Twice(Processes):
    """Sums like two processes with equal work."""

    def sum(self, tensor):
        return 2 * tensor


def work(ledger, tokens):
    ledger.add("rollout", 10.0 * tokens, generated_tokens=tokens)
    ledger.commit(Processes())


def test_a_resume_never_reduces_the_costs(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    work(ledger, 100)
    checkpoint = ledger.state_dict()
    work(ledger, 50)
    before = ledger.spent

    resumed = Ledger(tmp_path / "ledger.json")
    resumed.resume(checkpoint)
    assert resumed.run.generated_tokens == 100
    assert resumed.redone.generated_tokens == 50
    assert resumed.spent == before
    work(resumed, 50)
    assert resumed.run.generated_tokens == 150

    again = Ledger(tmp_path / "ledger.json")
    again.resume(None)
    assert again.run.generated_tokens == 0
    assert again.spent.generated_tokens == 200
    assert json.loads((tmp_path / "ledger.json").read_text())["redone"]["generated_tokens"] == 200


def test_abandoned_work_counts_as_spent_but_not_as_the_runs(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.add("rollout", 7.0, generated_tokens=3)
    ledger.give_up()
    assert ledger.run == Account()
    assert ledger.spent.generated_tokens == 3
    assert ledger.spent.flops == {"rollout": 7.0}


def test_a_commit_sums_over_the_processes(tmp_path):
    ledger = Ledger(tmp_path / "ledger.json")
    ledger.add("rollout", 7.0, generated_tokens=3)
    with ledger.phase("rollout"):
        pass
    ledger.commit(Twice())
    assert ledger.run.generated_tokens == 6
    assert ledger.run.flops == {"rollout": 14.0}
    assert 0 < ledger.run.seconds["rollout"] < 1

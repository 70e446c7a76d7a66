"""Continues rollouts on a server on loopback: what is asked, where they end, faults, and weights that have changed."""

import pytest
import torch

from hopd.errors import EngineError, ServerUnavailable
from hopd.model.stop import Stop
from hopd.rollout import FinishReason, Rollout, Sampling, Stretch, fold
from tests.test_processes import launched, run


def told(rollouts):
    return [(r.prompt.id, r.sample, r.ids.tolist(), r.log_probs.tolist(), r.finish) for r in rollouts]


def bodies(server):
    return [body for _, _, body in server.log()]


@pytest.fixture
def begin(prompts):
    """Returns two rollouts of 5 tokens for each prompt."""
    return lambda engine: engine.sample(prompts, 5, Sampling(), seed=3, samples=2)


def continued(engine, begun, limit=9):
    return engine.extend([Stretch(rollout, limit) for rollout in begun], Sampling())


def test_a_request_holds_prompt_and_response_and_draws_other_numbers(server, synced, begin):
    engine = synced(server, concurrency=1)
    begun = begin(engine)
    first = bodies(server)
    server.tell("faults", [])  # which empties the log
    longer = continued(engine, [rollout.aged() for rollout in begun])
    then = bodies(server)
    assert [body["token_ids"] for body in first] == [r.prompt.ids.tolist() for r in begun]
    assert [body["token_ids"] for body in then] == [r.prompt.ids.tolist() + r.ids.tolist() for r in begun]
    rest = [[body["sampling_params"].copy() for body in each] for each in (first, then)]
    assert [[params.pop("max_tokens") for params in each] for each in rest] == [[5] * 4, [4] * 4]
    seeds = [[params.pop("seed") for params in each] for each in rest]
    assert seeds[0] == [fold(3, r.prompt.id, r.sample) >> 1 for r in begun]
    assert len({*seeds[0], *seeds[1]}) == 8
    assert rest[0] == rest[1]
    for before, after in zip(begun, longer, strict=True):
        assert (after.prompt, after.sample, after.seed) == (before.prompt, before.sample, 3)
        assert torch.equal(after.ids[:5], before.ids)
        assert torch.equal(after.log_probs[:5], before.log_probs)
        assert (after.length, after.finish) == (9, FinishReason.HORIZON)
        assert after.age_of_tokens.tolist() == [1] * 5 + [0] * 4


def test_later_tokens_are_sampled_with_the_new_weights(server, synced, student, begin):
    engine = synced(server)
    begun = begin(engine)
    student.model.model.norm.weight.data.mul_(0.5)
    for before, after in zip(begun, continued(engine, begun), strict=True):
        ids = torch.cat([after.prompt.ids, after.ids])[None]
        with torch.no_grad():
            logits = student.model(input_ids=ids).logits[0, len(after.prompt.ids) - 1 : -1]
        mine = logits.log_softmax(-1).gather(-1, after.ids[:, None])[:, 0]
        torch.testing.assert_close(after.log_probs[5:], mine[5:], atol=1e-4, rtol=0)
        assert torch.equal(after.log_probs[:5], before.log_probs)
        assert (mine[:5] - before.log_probs).abs().max() > 0.01


def test_finish_reasons_of_continued_rollouts(server, synced, student, prompts):
    student.config.max_position_embeddings = 16
    stop_ids = [student.tokenizer.eos_token_id, student.tokenizer.convert_tokens_to_ids(":")]
    student.model.generation_config.eos_token_id = stop_ids
    engine = synced(server)
    begun = engine.sample(prompts, 4, Sampling(), seed=1, samples=2)
    assert {rollout.finish for rollout in begun} == {FinishReason.HORIZON}
    found = set()
    for limit in (6, 8):
        for rollout in continued(engine, begun, limit):
            room = 16 - len(rollout.prompt.ids)
            assert not set(stop_ids) & set(rollout.ids[:-1].tolist())
            if int(rollout.ids[-1]) in stop_ids:
                assert rollout.finish is FinishReason.STOP
            else:
                assert rollout.length == min(room, limit)
                assert rollout.finish is (FinishReason.CONTEXT if room < limit else FinishReason.HORIZON)
            found.add(rollout.finish)
    assert found == set(FinishReason)
    # The first prompt leaves room for 6: a rollout that was to go on has ended there.
    last = engine.extend([Stretch(rollout, 6, keep=True) for rollout in begun], Sampling())
    assert [rollout.finish for rollout in last] == [FinishReason.CONTEXT] * 2 + [FinishReason.HORIZON] * 2


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("dropped", "dropped"),
        ("busy", "busy"),
        ("server_error", "server_error"),
        ("malformed", "malformed"),
        ("not_finite", "not_finite"),
        ("short", "malformed"),
        ("ended", "wrong_length"),
        ("echoed", "wrong_length"),
        ("other_weights", "other_weights"),
    ],
)
def test_after_a_fault_the_same_rollout_is_continued(server, synced, begin, kind, counted):
    engine = synced(server, concurrency=1)
    begun = begin(engine)
    calm = told(continued(engine, begun))
    engine.metrics()
    server.tell("faults", [kind, kind])
    assert told(continued(engine, begun)) == calm
    after = engine.metrics()
    assert (after[f"rollout_faults_{counted}"], after["rollout_retries"]) == (2, 2)


@pytest.mark.parametrize("kind", ["ended", "echoed", "other_weights"])
def test_a_wrong_answer_that_stays_is_an_error(server, synced, begin, kind):
    engine = synced(server, deadline=0.2)
    begun = begin(engine)
    server.tell("faults", [f"{kind}!"])
    with pytest.raises(ServerUnavailable, match="have not been sampled"):
        continued(engine, begun)


def test_what_has_ended_cannot_be_continued(server, synced, student, prompts, begin):
    engine = synced(server)
    begun = begin(engine)
    stopped = Rollout.start(prompts[0], 0, 3).extended(
        torch.tensor([5, student.tokenizer.eos_token_id]), torch.zeros(2), FinishReason.STOP
    )
    server.tell("faults", [])
    with pytest.raises(EngineError, match=r"prompt 0, sample 0 cannot be continued to 9 tokens: it has 2.* stop"):
        continued(engine, [*begun, stopped])
    with pytest.raises(EngineError, match="cannot be continued to 5 tokens: it has 5"):
        continued(engine, begun, limit=5)
    student.config.max_position_embeddings = len(prompts[0].ids) + 5
    with pytest.raises(EngineError, match="cannot be continued to 9 tokens: it has 5"):
        continued(engine, begun)
    assert not server.log()


def test_starts_and_continued_rollouts_share_a_call_each_to_its_own_limit_and_in_order(server, synced, prompts, begin):
    engine = synced(server)
    begun = begin(engine)
    asked = [
        Stretch(begun[3], 8),
        Stretch(Rollout.start(prompts[0], 5, seed=7), 2),
        Stretch(begun[0], 12),
        Stretch(Rollout.start(prompts[1], 0, seed=8), 6, keep=True),
        Stretch(begun[1], 6),
    ]
    server.tell("faults", ["busy", "server_error"])  # so that answers come in another order
    together = engine.extend(asked, Sampling())
    assert [(r.prompt.id, r.sample, r.seed, r.length) for r in together] == [
        (one.rollout.prompt.id, one.rollout.sample, one.rollout.seed, one.limit) for one in asked
    ]
    assert told(together) == [told(engine.extend([one], Sampling()))[0] for one in asked]


TURNS = """
import torch
from hopd.model import load
from hopd.processes import Processes
from hopd.recipe import VllmServers
from hopd.rollout import Prompt, Rollout, Sampling, Stretch
from hopd.rollout.vllm.server import RemoteVllm
from hopd.rollout.weight_sync import WeightSync

processes, student = Processes.start(), load("package:hopd/quickstart/student")
source = VllmServers(kind="vllm_server", server="{server}", weights="file", directory="{directory}")
engine = WeightSync(RemoteVllm(student, source), student, processes, torch.float32)
rollouts = [Rollout.start(Prompt(processes.rank, torch.tensor([5, 6])), 0, seed=1)]
for turn in range(4):
    mine = rollouts if turn % 2 == processes.rank else []
    made = engine.extend([Stretch(rollout, 2 * turn + 2) for rollout in mine], Sampling())
    assert len(made) == len(mine)
    rollouts = made or rollouts
    assert len(set(processes.gather([engine.engine._version]))) == 1
assert [rollout.length for rollout in rollouts] == [6 + 2 * processes.rank]
"""


def test_a_process_without_rollouts_takes_part_in_the_weight_sync(server, tmp_path):
    """The first process sends the weights in turns that only the second one samples in."""
    (tmp_path / "turns.py").write_text(TURNS.format(server=server.url, directory=tmp_path / "weights"))
    run(launched(2, [str(tmp_path / "turns.py")]))


def test_a_text_that_spans_two_requests_ends_the_rollout_at_its_last_token(server, synced, student, prompts, begin):
    engine = synced(server, concurrency=1)
    whole = continued(engine, begin(engine), limit=40)
    decode = student.tokenizer.decode
    text = decode(whole[0].ids[3:7])  # begun by 5 tokens
    student.stop = Stop.of([text], student.tokenizer)
    server.tell("faults", [])
    begun = begin(engine)
    ended = [rollout for rollout in begun if rollout.finish is FinishReason.STOP]
    going = [rollout for rollout in begun if rollout.finish is FinishReason.HORIZON]
    ended += continued(engine, going, limit=40)
    params = [body["sampling_params"] for body in bodies(server)]
    assert all(each["stop"] == [text] and each["include_stop_str_in_output"] and each["detokenize"] for each in params)
    by_key = {(rollout.prompt.id, rollout.sample): rollout for rollout in whole}
    assert any(rollout.length > 5 and text in decode(rollout.ids) for rollout in ended)
    for rollout in ended:
        full = by_key[rollout.prompt.id, rollout.sample]
        length = next((n for n in range(1, full.length + 1) if text in decode(full.ids[:n])), full.length)
        assert rollout.ids.tolist() == full.ids[:length].tolist()
        assert rollout.finish is (FinishReason.STOP if text in decode(full.ids[:length]) else full.finish)
    stopped = next(rollout for rollout in ended if text in decode(rollout.ids))
    with pytest.raises(EngineError, match="finish reason stop"):
        continued(engine, [stopped], limit=40)

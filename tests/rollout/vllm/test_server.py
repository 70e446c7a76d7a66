"""Samples from a real vLLM server: its distribution is the student's, before and after its weights change in place.

All tests share one server of the quickstart's architecture, started with weights that no test uses.
"""

import json
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from hopd.errors import EngineError, ServerUnavailable
from hopd.model import load
from hopd.objective import TopK
from hopd.processes import Processes
from hopd.recipe import ServerSource, VllmServers
from hopd.rollout import FinishReason, NativeEngine, Prompt, Sampling, pack
from hopd.rollout.vllm.server import RemoteVllm
from hopd.rollout.weight_sync import WeightSync
from hopd.tasks.addition import prompt, scratchpad
from hopd.teacher import LocalTeacher, RemoteTeacher
from tests.rollout.native.test_engine import plain_log_probs
from tests.rollout.vllm.stretches import begin, continued
from tests.rollout.vllm.vllm_server import VLLM_PYTHON, needs_vllm, vllm_server
from tests.teacher.scripted import STUDENT, TEACHER, metrics, weights

pytestmark = [pytest.mark.vllm, needs_vllm]

GREEDY = Sampling(temperature=0.0)
LOG_PROBS = 1e-4  # nats a token, in float32; measured: 1e-5
ALPHA = 1e-3  # the probability that a test fails by chance; with fixed seeds it always passes
SAMPLES = 2000
DEVELOPMENT = {"VLLM_SERVER_DEV_MODE": "1"}


@pytest.fixture(scope="module")
def server():
    with vllm_server(
        VLLM_PYTHON, TEACHER, "--enable-scale-out", "--enable-prefix-caching", "--max-num-seqs", "64",
        "--served-model-name", "tiny", environment=DEVELOPMENT,
    ) as url:  # fmt: skip
        yield url


@pytest.fixture
def student():
    return load(STUDENT)


@pytest.fixture
def synced(server, student, tmp_path):
    source = VllmServers(kind="vllm_server", server=server, weights="file", directory=str(tmp_path), deadline=60.0)
    engine = RemoteVllm(student, source)
    return WeightSync(engine, student, Processes(), torch.float32)


@pytest.fixture
def prompts(student):
    """Prompts of several lengths, for one to eight additions: some responses end before the horizon."""
    texts = ["7+2*a:", "041+185*c:", "274+581*h:", "13+99*b:"]
    return [Prompt(10 + n, torch.tensor(student.tokenizer(text).input_ids)) for n, text in enumerate(texts)]


@pytest.fixture
def cached_prompts(student, prompts):
    """One prompt more: it is long enough to be in the server's prefix cache when the weights change."""
    long = student.tokenizer(prompt(274, 581, 12) + scratchpad(274, 581, 12)).input_ids[:300]
    return [*prompts, Prompt(20, torch.tensor(long))]


def flatten(student, scale=0.3, seed=0):
    """Changes the weights so that no token is certain."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter += 0.05 * parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
        student.model.model.norm.weight.mul_(scale)


def assert_same(made, expected):
    assert [(r.prompt.id, r.sample, r.ids.tolist(), r.finish) for r in made] == [
        (r.prompt.id, r.sample, r.ids.tolist(), r.finish) for r in expected
    ]
    difference = max(float((a.log_probs - b.log_probs).abs().max()) for a, b in zip(made, expected, strict=True))
    print(f"log-probs differ by at most {difference:.2g}")
    assert difference < LOG_PROBS


def test_greedy_rollouts_equal_the_native_engines_before_and_after_an_update(synced, student, cached_prompts):
    for change in (lambda: None, lambda: flatten(student, 1.0, 1), lambda: flatten(student, 1.0, 2)):
        change()
        made = synced.sample(cached_prompts, 60, GREEDY, 0)
        assert_same(made, NativeEngine(student).sample(cached_prompts, 60, GREEDY, 0))
        print(f"the fingerprint differs by {synced.difference:.2g}")
        assert synced.difference < 1e-4


def test_greedy_rollouts_that_continue_equal_uninterrupted_ones(synced, student, cached_prompts):
    made = continued(synced, begin(cached_prompts), (7, 20, 60), GREEDY)
    assert_same(made, synced.sample(cached_prompts, 60, GREEDY, 0))
    assert_same(made, NativeEngine(student).sample(cached_prompts, 60, GREEDY, 0))
    assert {rollout.finish for rollout in made} == {FinishReason.STOP, FinishReason.HORIZON}


def test_after_an_update_rollouts_continue_with_the_new_weights(synced, student, cached_prompts):
    flatten(student)
    begun = continued(synced, begin(cached_prompts, seed=5, samples=2), (12,), Sampling())
    flatten(student, 1.0, 1)
    for before, after in zip(begun, continued(synced, begun, (30,), Sampling()), strict=True):
        assert before.finish is FinishReason.HORIZON
        assert torch.equal(after.ids[:12], before.ids)
        assert torch.equal(after.log_probs[:12], before.log_probs)
        new = plain_log_probs(student, after)
        difference = (new - after.log_probs).abs()
        print(f"log-probs differ by at most {difference[:12].max():.2g} before and {difference[12:].max():.2g} after")
        assert difference[12:].max() < LOG_PROBS
        assert difference[:12].max() > 100 * LOG_PROBS  # old weights would be noticed


def test_finish_reasons_are_the_native_engines(synced, student, prompts):
    native = NativeEngine(student)
    length = native.sample(prompts[:1], 60, GREEDY, 0)[0].length
    for horizon in (length, length - 1):
        made = synced.sample(prompts, horizon, GREEDY, 0)
        assert_same(made, native.sample(prompts, horizon, GREEDY, 0))
        assert made[0].finish is (FinishReason.STOP if horizon == length else FinishReason.HORIZON)
    assert made[0].ids[-1] not in student.stop_ids
    student.config.max_position_embeddings = 30
    made = synced.sample(prompts, 24, GREEDY, 0)
    assert_same(made, native.sample(prompts, 24, GREEDY, 0))
    assert FinishReason.CONTEXT in {rollout.finish for rollout in made}
    assert synced.sample([], 24, GREEDY, 0) == []


def test_every_stop_id_of_the_student_stops(synced, student, prompts):
    semicolon = student.tokenizer.convert_tokens_to_ids(";")
    student.model.generation_config.eos_token_id = [student.tokenizer.eos_token_id, semicolon]
    made = synced.sample(prompts, 60, GREEDY, 0)
    assert_same(made, NativeEngine(student).sample(prompts, 60, GREEDY, 0))
    assert {int(rollout.ids[-1]) for rollout in made} == {semicolon}


def test_a_request_draws_the_same_whenever_it_is_asked_and_a_shorter_horizon_gives_a_prefix(synced, student, prompts):
    flatten(student)
    long = synced.sample(prompts, 40, Sampling(), seed=5, samples=2)
    again = synced.sample(prompts[1:], 40, Sampling(), seed=5, samples=2)
    assert [r.ids.tolist() for r in again] == [r.ids.tolist() for r in long[2:]]
    short = synced.sample(prompts, 11, Sampling(), seed=5, samples=2)
    assert [r.ids.tolist() for r in short] == [r.ids[:11].tolist() for r in long]
    other = synced.sample(prompts, 40, Sampling(), seed=6, samples=2)
    assert [r.ids.tolist() for r in other] != [r.ids.tolist() for r in long]


@torch.no_grad()
def first_two(student, asked):
    """Returns the probabilities of the first token and of the second; the last entry of the second is for no token."""
    vocabulary = student.head.vocabulary
    first = student.model(input_ids=asked.ids[None]).logits[0, -1].double().softmax(-1)
    extended = torch.cat([asked.ids.expand(vocabulary, -1), torch.arange(vocabulary)[:, None]], dim=1)
    then = student.model(input_ids=extended).logits[:, -1].double().softmax(-1)
    going_on = torch.ones(vocabulary, dtype=torch.bool)
    going_on[list(student.stop_ids)] = False
    second = (first[going_on, None] * then[going_on]).sum(0)
    return first, torch.cat([second, first[~going_on]])  # the last: the response has ended


def p_value(counts, probabilities):
    """Returns the p-value of a chi-square test; cells of fewer than 5 expected counts are merged."""
    observed = torch.tensor([counts.get(i, 0) for i in range(len(probabilities))], dtype=torch.float64)
    expected = probabilities * sum(counts.values())
    rare = expected < 5
    cells = [torch.cat([values[~rare], values[rare].sum()[None]]) for values in (observed, expected)]
    kept = cells[1] > 0
    assert int(kept.sum()) > 10
    return float(chisquare(cells[0][kept].numpy(), (cells[1][kept] * cells[0].sum() / cells[1].sum()).numpy()).pvalue)


@pytest.mark.parametrize("limits", [(2,), (1, 2)], ids=["uninterrupted", "continued"])
def test_sampled_tokens_have_the_students_distribution(synced, student, prompts, limits):
    flatten(student)
    first, second = first_two(student, prompts[1])
    for engine in (synced, NativeEngine(student, rows=512)):
        made = continued(engine, begin(prompts[1:2], seed=11, samples=SAMPLES), limits, Sampling())
        firsts = Counter(int(rollout.ids[0]) for rollout in made)
        seconds = Counter(int(rollout.ids[1]) if rollout.length > 1 else len(second) - 1 for rollout in made)
        ps = [p_value(firsts, first), p_value(seconds, second)]
        print(type(engine).__name__, "p:", ps)
        assert min(ps) > ALPHA
    assert p_value(firsts, (first.log() * 0.8).softmax(-1)) < ALPHA  # the test rejects a temperature of 1.25


def test_other_weights_behind_the_runs_back_are_noticed(synced, student, prompts, monkeypatch):
    synced.sample(prompts, 8, Sampling(), 0)
    engine = synced.engine
    engine.client.once(engine.source.servers[0], "POST", "/update_weight_version", {"new_version": "another run's"})
    engine.client.source = engine.source.model_copy(update={"deadline": 0.2})
    with pytest.raises(ServerUnavailable, match='sampled with the weights "another run\'s"'):
        continued(engine, begin(prompts), (8,), Sampling())
    engine.client.source = engine.source

    sent = {name: tensor.clone() for name, tensor in synced._weights().items()}
    sent["model.norm.weight"] *= 1.01
    monkeypatch.setattr(synced, "_weights", lambda: sent)
    with pytest.raises(EngineError, match="does not decode with the student's weights after they were sent"):
        synced.sample(prompts, 8, Sampling(), 0)


def test_a_server_says_how_it_takes_weights(synced, server):
    list(synced.check(longest=1024))
    assert synced.engine.transfer_of(server) is None


def test_a_teacher_behind_it_scores_as_the_local_one_does(synced, student, prompts, server):
    synced.sample(prompts, 8, Sampling(), 0)  # now the server has the student's weights
    batches = pack(NativeEngine(student).sample(prompts, 30, Sampling(), 0), [(0, 6)] * 4, 10_000)
    objective = TopK(k=4, candidates="teacher")
    remote = RemoteTeacher(ServerSource(server=server, model="tiny"), objective, student.head.vocabulary)
    for batch in batches:
        every = slice(0, len(batch.at.tokens))
        mine, theirs = LocalTeacher(student).score(batch), remote.score(batch)
        difference = (mine.log_prob(every, batch.at.tokens) - theirs.log_prob(every, batch.at.tokens)).abs().max()
        print(f"the teacher differs by {float(difference):.2g}")
        assert difference < LOG_PROBS
        torch.testing.assert_close(theirs.top_k(every, 4)[1], mine.top_k(every, 4)[1], atol=LOG_PROBS, rtol=0)


TRAINED = """
name: trained
output: {output}
student: {{model: "package:hopd/quickstart/student"}}
teacher: {{model: "package:hopd/quickstart/teacher"}}
task: {{source: addition, steps: 2, size: 64}}
rollout:
  prompts: 8
  full_tokens: 40
  engine: {{kind: vllm_server, server: "{server}", weights: file, directory: {output}/weights}}
horizon: {{controller: progressive, start: 8, increment: 6}}
training: {{steps: 3, learning_rate: 1e-3}}
evaluation: {{task: {{source: addition, steps: 1, size: 16, held_out: true}}, at_start: false}}
checkpoint: {{every: 1}}
"""


def test_a_run_is_trained_stopped_and_resumed(command, server, tmp_path):
    path = tmp_path / "trained.yaml"
    path.write_text(TRAINED.format(output=tmp_path / "runs", server=server))
    assert command("train", path, "--set=name=whole").code == 0
    assert command("train", path, "--set=training.steps=2").code == 0
    ended = command("train", path, "--resume")
    assert ended.code == 0, ended.err
    whole, resumed = (metrics(tmp_path / "runs" / name) for name in ("whole", "trained"))
    assert [line["horizon"] for line in resumed] == [8, 14, 20]
    assert max(line["mismatch"] for line in whole + resumed) < LOG_PROBS
    assert max(line["weight_sync_difference"] for line in whole + resumed) < LOG_PROBS
    assert not any("alarm" in line for line in whole + resumed)
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in whole], rel=1e-4)
    mine, theirs = weights(tmp_path / "runs" / "trained"), weights(tmp_path / "runs" / "whole")
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-4, rtol=0)
    evaluated = (tmp_path / "runs" / "trained" / "evaluations.jsonl").read_text().splitlines()
    assert json.loads(evaluated[-1])["problems"] == 16

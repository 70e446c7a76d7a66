"""Tokens that a server gives no finite log-prob for: skipped by name and counted where rare, an error where many."""

import math

import pytest
import torch

from hopd import Distiller, Recipe
from hopd.errors import TeacherUnavailable
from hopd.model import load
from hopd.objective import Sampled, StopClass, TopK, distillation_loss
from hopd.remote import fingerprint_ids
from hopd.rollout import NativeEngine, Prompt, Sampling, pack
from hopd.run.progress import Progress
from hopd.teacher import LocalTeacher, RemoteTeacher
from tests.teacher.scripted import TEACHER, equal, metrics, weights
from tests.teacher.test_remote import source

RECIPE = {
    "student": {"model": "package:hopd/quickstart/student"},
    "task": {"source": "addition", "steps": 1, "size": 256},
    "rollout": {"prompts": 8, "full_tokens": 40},
    "objective": {"estimator": "sampled"},
    "horizon": {"controller": "truncated", "tokens": 20},
    "training": {"steps": 4, "learning_rate": 1e-3},
    "checkpoint": {"every": 100},
}


@pytest.fixture(scope="module")
def batch(student):
    prompts = [
        Prompt(n, torch.tensor(student.tokenizer(text).input_ids)) for n, text in enumerate(("041+185*c:", "7+2*c:"))
    ]
    made = NativeEngine(student).sample(prompts, 60, Sampling(), 0, 4)
    (batch,) = pack(made, [(0, rollout.length) for rollout in made], 10_000)
    return batch


@pytest.fixture(scope="module")
def rare(student, batch):
    """Returns an id that few of the sampled tokens have, and no fingerprint."""
    counts = torch.bincount(batch.at.tokens, minlength=student.head.vocabulary)
    return min((id for id in counts.nonzero()[:, 0].tolist() if id not in fingerprint_ids(45)), key=lambda i: counts[i])


def remote(server, student, objective=None, **settings):
    ends = settings.pop("ends", ())
    return RemoteTeacher(source(server, **settings), objective or Sampled(), student.head.vocabulary, ends)


def test_a_token_without_a_log_prob_is_asked_for_twice_and_carries_no_loss(server, student, batch, rare):
    server.tell("faults", [f"masks{rare}!"])
    teacher = remote(server, student, deadline=60.0)
    silent = teacher.without_gaps(batch)
    gone = batch.at.tokens == rare
    assert 0 < int(gone.sum()) == teacher.gaps
    assert torch.equal(silent.at.weight == 0, gone)
    assert f"no finite log-prob of id {rare}, response token" in teacher.example
    assert "rollout of prompt" in teacher.example
    assert set(teacher.client.stats.faults) == {"impossible"}
    assert {kind for _, kind, _ in server.log()} == {f"masks{rare}"}
    assert len(server.log()) <= 2 * 4
    signal = teacher.score(batch)
    loss, terms = distillation_loss(
        Sampled(gamma=1.0), student.head, batch.states(student.hidden(batch.ids)), signal, silent.at
    )
    assert bool(torch.isfinite(terms.loss).all())
    assert math.isfinite(float(loss))
    local = LocalTeacher(load(TEACHER)).score(batch).log_prob(slice(0, len(gone)), batch.at.tokens)
    torch.testing.assert_close(signal.sampled[~gone], local[~gone], atol=1e-4, rtol=0)


def test_among_the_likely_tokens_it_is_a_gap_too(server, student, batch):
    likely = int(LocalTeacher(load(TEACHER)).score(batch).top_k(slice(3, 4), 1)[0])
    server.tell("faults", [f"masks{likely}!"])
    few = pack(batch.rollouts[:1], [(3, 4)], 1000)[0]
    objective = TopK(k=4, candidates="teacher")
    teacher = remote(server, student, objective)
    if likely in fingerprint_ids(45):
        with pytest.raises(TeacherUnavailable, match="raw_logprobs"):
            teacher.without_gaps(few)
        return
    assert int(teacher.without_gaps(few).at.weight.sum()) == 0
    assert torch.isfinite(teacher.score(few).top_k(slice(0, 1), 4)[1]).all()


def test_nan_that_stays_is_a_gap_only_after_several_answers(server, student, batch):
    server.tell("faults", ["not_finite!"])
    teacher = remote(server, student, sequences=100, concurrency=1)
    teacher.fetch([batch])
    assert (teacher.gaps, len(server.log())) == (1, 5)
    server.tell("faults", ["null"] * 4)
    teacher.fetch([batch])
    assert (teacher.gaps, len(server.log())) == (0, 5)


def test_many_of_them_or_one_of_the_fingerprint_end_the_run_at_once(server, student, batch):
    counts = torch.bincount(batch.at.tokens, minlength=45)
    counts[fingerprint_ids(45)] = 0
    frequent = int(counts.argmax())
    assert counts[frequent] > 0.1 * len(batch.at.tokens)
    for id in (frequent, fingerprint_ids(45)[3]):
        server.tell("faults", [f"masks{id}!"])
        with pytest.raises(TeacherUnavailable, match=rf"id {id}\b.*--logprobs-mode raw_logprobs") as raised:
            remote(server, student, deadline=60.0).fetch([batch])
        assert len(str(raised.value)) < 400
        assert len(server.log()) <= 2 * 4


def test_a_run_goes_on_counts_them_and_resumes_to_the_same_bits(server, tmp_path, rare):
    def run(name, steps):
        teacher = {"server": server.url, "model": "tiny", "backoff": 0.01, "deadline": 60.0}
        content = RECIPE | {"name": name, "output": str(tmp_path), "teacher": teacher}
        content["training"] = {"steps": steps, "learning_rate": 1e-3}
        Distiller.of(Recipe.parse(content), resume=True, progress=Progress(quiet=True)).train()
        return tmp_path / name

    server.tell("faults", [f"masks{rare}!"])
    whole = run("whole", 4)
    run("cut", 2)
    assert equal(weights(whole), weights(run("cut", 4)))
    lines = metrics(whole)
    skipped = sum(line.get("teacher_skipped_tokens", 0) for line in lines)
    alarms = [line["alarm"] for line in lines if line.get("teacher_skipped_tokens")]
    assert skipped == sum(line["generated_tokens"] - line["trained_tokens"] for line in lines) > 0
    assert all(f"id {rare}" in alarm and "raw_logprobs" in alarm and len(alarm) < 400 for alarm in alarms)


def test_ends_as_one_class_are_the_local_teachers(server, student, batch):
    """The last token that is scored is one where the teacher prefers another: these two are the ends."""
    teacher = LocalTeacher(load(TEACHER))
    rows = slice(0, len(batch.at.tokens))
    place = int(teacher.score(batch).log_prob(rows, batch.at.tokens).argmin())
    likely = int(teacher.score(batch).top_k(slice(place, place + 1), 1)[0])
    stop = StopClass(tuple(sorted((int(batch.at.tokens[place]), likely))))
    rollout, end = batch.rollouts[int(batch.at.row[place])], int(batch.at.position[place]) + 1
    (here,) = pack([rollout], [(end - 1, end)], 10_000)
    one, token = slice(0, 1), stop.tokens(here.at.tokens)
    found = stop.signal(remote(server, student, ends=stop.ends).score(here)).log_prob(one, token)
    torch.testing.assert_close(found, stop.signal(teacher.score(here)).log_prob(one, token), atol=1e-4, rtol=0)
    plain = remote(server, student).score(here)
    assert float(found - plain.sampled) > 0.5
    with pytest.raises(TypeError, match="not of all ends"):
        stop.signal(plain)

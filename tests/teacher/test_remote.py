"""Compares the scores of a teacher behind a server on loopback with a local one's, through every kind of fault."""

import pytest
import torch

from hopd.errors import TeacherUnavailable
from hopd.model import load
from hopd.objective import Sampled, TopK
from hopd.recipe import ServerSource
from hopd.rollout import NativeEngine, Prompt, Sampling, pack
from hopd.teacher import LocalTeacher, RemoteTeacher
from tests.teacher.scripted import STUDENT, TEACHER, Scripted

TOP_K = TopK(k=4, candidates="teacher")
BOUND = 1e-4  # nats: the same weights in float32, in batches of other shapes


@pytest.fixture(scope="module")
def batch():
    student = load(STUDENT)
    ids = [student.tokenizer(text).input_ids for text in ("041+185*c:", "7+2*c:")]
    prompts = [Prompt(n, torch.tensor(i)) for n, i in enumerate(ids)]
    made = NativeEngine(student).sample(prompts, 30, Sampling(), 0)
    (batch,) = pack(made, [(0, made[0].length), (3, 20)], 10_000)
    return batch


@pytest.fixture(scope="module")
def local(batch):
    signal = LocalTeacher(load(TEACHER)).score(batch)
    every = slice(0, len(batch.at.tokens))
    return signal.log_prob(every, batch.at.tokens), *signal.top_k(every, 4)


def source(*servers, **settings):
    return ServerSource(
        server=[s if isinstance(s, str) else s.url for s in servers],
        model="tiny",
        **{"backoff": 0.01, "timeout": 1.0, "deadline": 20.0, **settings},
    )


def teacher(*servers, objective=TOP_K, **settings):
    return RemoteTeacher(source(*servers, **settings), objective, load(STUDENT).head.vocabulary)


def check(remote, batch, local):
    signal = remote.score(batch)
    every = slice(0, len(batch.at.tokens))
    torch.testing.assert_close(signal.log_prob(every, batch.at.tokens), local[0], atol=BOUND, rtol=0)
    if remote.top:
        ids, likely = signal.top_k(every, 4)
        assert (ids == local[1]).float().mean() > 0.95  # two tokens that are as likely may change places
        torch.testing.assert_close(likely, local[2], atol=BOUND, rtol=0)


@pytest.mark.parametrize("objective", [Sampled(), TOP_K])
def test_a_servers_scores_are_the_local_teachers(server, batch, local, objective):
    check(teacher(server, objective=objective), batch, local)


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("dropped", "dropped"),
        ("timeout", "timeout"),
        ("busy", "busy"),
        ("server_error", "server_error"),
        ("malformed", "malformed"),
        ("html", "malformed"),
        ("not_finite", "not_finite"),
        ("null", "not_finite"),
        ("short", "wrong_length"),
        ("fewer", "wrong_length"),
        ("other_weights", "other_weights"),
    ],
)
def test_a_fault_is_counted_and_asked_again(server, batch, local, kind, counted):
    remote = teacher(server, concurrency=1)
    check(remote, batch, local)
    remote.fetch([])
    server.tell("faults", [kind, kind])  # NaN twice may still be a passing fault
    check(remote, batch, local)
    assert dict(remote.client.stats.faults) == {counted: 2}
    assert remote.client.stats.retries == 2
    assert remote.client.stats.seconds > 0


@pytest.mark.parametrize("kind", ["dropped", "server_error", "malformed", "short", "later", "rejected"])
def test_a_fault_that_stays_is_an_error_never_a_score(server, batch, kind):
    server.tell("faults", [f"{kind}!"])
    with pytest.raises(TeacherUnavailable, match=f"at {server.url}"):
        teacher(server, deadline=0.2).score(batch)


def test_nobody_listens(batch):
    with pytest.raises(TeacherUnavailable, match="no connection"):
        teacher("http://127.0.0.1:9", deadline=0.2).score(batch)


def test_of_several_servers_the_others_go_on(server, batch, local):
    remote = teacher("http://127.0.0.1:9", server)
    check(remote, batch, local)
    assert set(remote.client.stats.faults) == {"refused"}
    other = Scripted()
    try:
        both = teacher(server, other, sequences=1)
        check(both, batch, local)
        assert server.log()
        assert other.log()
    finally:
        other.end()
    both.fetch([])
    check(both, batch, local)

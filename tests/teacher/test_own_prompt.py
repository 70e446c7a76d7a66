"""A teacher that reads a prompt of its own is compared with the student response token by response token."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hopd.model import load
from hopd.model.adapters import add_adapters
from hopd.objective import Full, Sampled, TopK, distillation_loss
from hopd.recipe import ServerSource
from hopd.rollout import FinishReason, Prompt, Rollout, pack
from hopd.teacher import BaseTeacher, LocalTeacher, RemoteTeacher, RoutedTeacher
from tests.teacher.scripted import STUDENT

OBJECTIVES = [Full(), Full(divergence="jsd", beta=0.3), Sampled(), Sampled(gamma=0.9), TopK(k=4)]
WINDOWS = ["all", "first", "last"]


def rollout(number: int, prompt: int, own: int | None, length: int, same: bool = False) -> Rollout:
    """Returns a rollout of random ids; `own` is the length of the teacher's prompt, None where it has none."""
    g = torch.Generator().manual_seed(number)
    ids = torch.randint(3, 40, (prompt,), generator=g)
    theirs = None if own is None else ids.clone() if same else torch.randint(3, 40, (own,), generator=g)
    response, log_probs = torch.randint(3, 40, (length,), generator=g), -torch.rand(length, generator=g)
    return Rollout(Prompt(number, ids, None, theirs), 0, response, log_probs, FinishReason.HORIZON)


def rollouts(shapes: list[tuple[int, int, int]], same: bool | None) -> list[Rollout]:
    """Returns rollouts of prompt, own prompt and response; `same` is None where the teacher has no prompts."""
    return [rollout(n, p, None if same is None else o, length, bool(same)) for n, (p, o, length) in enumerate(shapes)]


def spans(made: list[Rollout], window: str) -> list[tuple[int, int]]:
    edges = {"all": (0, 1), "first": (0, 0.5), "last": (0.5, 1)}[window]
    return [(int(edges[0] * one.length), max(1, int(edges[1] * one.length))) for one in made]


def step(student: Any, teacher: Any, made: list[Rollout], objective: Any, window: str, budget: int) -> list[Tensor]:
    """Returns the loss of a step and its gradients."""
    student.model.zero_grad()
    total = torch.zeros(())
    batches = pack(made, spans(made, window), budget, whole_response=objective.gamma > 0)
    for batch in batches:
        hidden = batch.states(student.hidden(batch.ids))
        loss, _ = distillation_loss(objective, student.head, hidden, teacher.score(batch), batch.at)
        loss.backward()
        total = total + loss.detach()
    return [total, *(p.grad.clone() for p in student.model.parameters() if p.grad is not None)]


SHAPES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=4)


@settings(max_examples=12)
@given(SHAPES, st.sampled_from(OBJECTIVES), st.sampled_from(WINDOWS), st.sampled_from([20, 1000]))
def test_the_students_prompt_as_its_own_gives_the_same_bits(student, teacher, shapes, objective, window, budget):
    local = LocalTeacher(teacher)
    without, given = (step(student, local, rollouts(shapes, same), objective, window, budget) for same in (None, True))
    assert len(without) == len(given)
    assert all(torch.equal(a, b) for a, b in zip(without, given, strict=True))


@settings(max_examples=12)
@given(SHAPES, st.sampled_from(WINDOWS), st.sampled_from([20, 1000]), st.sampled_from([0.0, 0.9]))
def test_other_prompts_give_the_loss_of_a_plain_float64_reference(student, teacher, shapes, window, budget, gamma):
    """Each rollout alone, nothing padded: full reverse KL without credit, −Σ_k γ^(k−t) r_k · log π(y_t) with it."""
    made, objective = rollouts(shapes, False), Sampled(gamma=gamma) if gamma else Full()
    loss, *gradients = step(student, LocalTeacher(teacher), made, objective, window, budget)
    student.model.double(), teacher.model.double()
    try:
        student.model.zero_grad()
        pairs = zip(made, spans(made, window), strict=True)
        expected = torch.stack([reference(student.model, teacher.model, *pair, gamma) for pair in pairs]).sum()
        expected.backward()
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-4, atol=1e-4)
        exact = [p.grad.clone() for p in student.model.parameters() if p.grad is not None]
    finally:
        student.model.float(), teacher.model.float()
    for mine, theirs in zip(gradients, exact, strict=True):
        rounding = 1e-3 * float(theirs.abs().max()) + 2e-5  # where both models agree, gradients are rounding alone
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=rounding)


def reference(student: Any, teacher: Any, one: Rollout, span: tuple[int, int], gamma: float) -> Tensor:
    def log_probs(model: Any, prompt: Tensor) -> Tensor:
        ids = torch.cat([prompt, one.ids])[None, :-1]
        logits: Tensor = model(input_ids=ids).logits[0, -one.length :].log_softmax(-1)
        return logits

    assert one.prompt.teacher_ids is not None
    s = log_probs(student, one.prompt.ids)
    with torch.no_grad():
        g = log_probs(teacher, one.prompt.teacher_ids)
    if not gamma:
        return (s.exp() * (s - g)).sum(-1)[slice(*span)].sum()
    at = (torch.arange(one.length), one.ids)
    r = (g[at] - s[at]).detach()
    credit = torch.stack([(gamma ** torch.arange(one.length - t) * r[t:]).sum() for t in range(one.length)])
    return -(credit * s[at])[slice(*span)].sum()


def test_a_micro_batch_holds_neither_models_tokens_beyond_the_budget():
    made = rollouts([(2, 30, 5)] * 4, False)
    batches = pack(made, [(0, 5)] * 4, 80)
    assert [len(batch.rollouts) for batch in batches] == [2, 2]
    for batch in batches:
        assert batch.ids.shape == (2, 6)
        assert batch.of_teacher.ids.shape == (2, 34)
        assert batch.of_teacher.at is batch.at


def test_a_served_teacher_is_sent_its_own_prompts(server, student, teacher):
    made = rollouts([(4, 20, 9), (7, 3, 12), (5, 11, 1)], False)
    (batch,) = pack(made, [(0, 9), (3, 10), (0, 1)], 10_000)
    source = ServerSource(server=server.url, model="tiny", backoff=0.01)
    every = slice(0, len(batch.at.tokens))
    local = LocalTeacher(teacher).score(batch)
    for objective in (Sampled(), TopK(k=4, candidates="teacher")):
        scored = RemoteTeacher(source, objective, student.head.vocabulary).score(batch)
        ours, theirs = (signal.log_prob(every, batch.at.tokens) for signal in (scored, local))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(scored.top_k(every, 4)[1], local.top_k(every, 4)[1], atol=1e-4, rtol=0)


def test_of_several_teachers_each_reads_its_own_prompts_or_the_students(student, teacher):
    made = [
        Rollout(Prompt(n, one.prompt.ids, name, theirs), 0, one.ids, one.log_probs, one.finish)
        for n, one in enumerate(rollouts([(4, 20, 9)] * 4, False))
        for name, theirs in [("shown", one.prompt.teacher_ids) if n % 2 else ("blind", None)]
    ]
    both = RoutedTeacher({"shown": LocalTeacher(teacher), "blind": LocalTeacher(teacher)})
    for batch in pack(made, [(0, 9)] * 4, 10_000):
        found = both.score(batch).log_prob(slice(0, 18), batch.at.tokens)
        for row, one in enumerate(batch.rollouts):
            prompt = one.prompt.teacher_ids if batch.teacher == "shown" else one.prompt.ids
            assert prompt is not None
            with torch.no_grad():
                logits = teacher.model(input_ids=torch.cat([prompt, one.ids])[None, :-1]).logits[0, -9:]
            alone = logits.log_softmax(-1).gather(-1, one.ids[:, None])[:, 0]
            torch.testing.assert_close(found[batch.at.row == row], alone, atol=1e-4, rtol=0)


def test_the_students_base_reads_its_own_prompts_too():
    adapted, plain = load(STUDENT), load(STUDENT)
    add_adapters(adapted, 2, 8, "all-linear", 0)
    (batch,) = pack(rollouts([(4, 20, 9)], False), [(0, 9)], 10_000)
    mine, theirs = (
        signal.log_prob(slice(0, 9), batch.at.tokens)
        for signal in (BaseTeacher(adapted).score(batch), LocalTeacher(plain).score(batch))
    )
    torch.testing.assert_close(mine, theirs)

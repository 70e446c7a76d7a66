"""Answers that the teacher begins and the student ends."""

import pytest
import torch

from hopd.analysis.continuation import continuation
from hopd.errors import RecipeError
from hopd.evaluation.accuracy import evaluate, measure
from hopd.model import load
from hopd.rollout import NativeEngine, Sampling
from hopd.tasks import RepeatedAddition
from hopd.tasks.prompts import encode

STUDENT, TEACHER = (load(f"package:hopd/quickstart/{name}") for name in ("student", "teacher"))
FULL, GREEDY = 90, Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def prompts():
    return encode(RepeatedAddition(2, 24), STUDENT.tokenizer, chat=False, max_tokens=100)


def test_without_a_prefix_it_is_the_students_own_accuracy(prompts):
    found = continuation(STUDENT, TEACHER, prompts, FULL, GREEDY, ratios=[0.0])
    assert found[0.0] == evaluate(NativeEngine(STUDENT), prompts, FULL, GREEDY)[0]


def test_with_nearly_all_of_the_answer_it_is_the_teachers(prompts):
    teachers = evaluate(NativeEngine(TEACHER), prompts, FULL, GREEDY)[0]
    assert teachers.length_quantiles["1"] < 0.99 * FULL  # so that every answer has ended by then
    found = continuation(STUDENT, TEACHER, prompts, FULL, GREEDY, ratios=[0.99])
    assert found[0.99] == teachers


def test_the_prefix_is_the_teachers_and_the_rest_the_students(prompts, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "hopd.analysis.continuation.measure",
        lambda rollouts, *given: kept.append(rollouts) or measure(rollouts, *given),
    )
    continuation(STUDENT, TEACHER, prompts, FULL, GREEDY, ratios=[0.25])
    cut = round(0.25 * FULL)
    written = NativeEngine(TEACHER).sample(prompts.prompts, FULL, GREEDY, 0)
    for answer, teachers in zip(kept[0], written, strict=True):
        assert answer.prompt.id == teachers.prompt.id
        assert answer.ids[:cut].tolist() == teachers.ids[:cut].tolist()
        ids = torch.cat([answer.prompt.ids, answer.ids])[None]
        with torch.no_grad():
            greedy = STUDENT.model(input_ids=ids).logits[0].argmax(-1)
        start = len(answer.prompt.ids) + cut
        assert ids[0, start:].tolist() == greedy[start - 1 : -1].tolist()


def test_several_prefixes_of_a_problem_count_as_its_samples(prompts):
    found = continuation(STUDENT, TEACHER, prompts, FULL, Sampling(), ratios=[0.1], prefixes=3)[0.1]
    assert (found.problems, found.samples) == (24, 3)


def test_a_share_of_one_or_more_is_refused(prompts):
    with pytest.raises(RecipeError, match="got 1"):
        continuation(STUDENT, TEACHER, prompts, FULL, GREEDY, ratios=[1.0])

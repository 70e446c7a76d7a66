"""Prefix continuation: the teacher writes the start of an answer, the student the rest."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

from hopd.analysis.continuation import Continuation, continuation, continuation_recipe
from hopd.errors import RecipeError
from hopd.evaluation.accuracy import evaluate, measure
from hopd.model import load
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine, Sampling
from hopd.tasks import RepeatedAddition
from hopd.tasks.prompts import encode

STUDENT, TEACHER = (load(f"package:hopd/quickstart/{name}") for name in ("student", "teacher"))
EVALUATION = "evaluation={task: {source: addition, steps: 2, size: 24, held_out: true}, temperature: 0, seed: 5}"
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
    measuring = Mock(wraps=measure)
    monkeypatch.setattr("hopd.analysis.continuation.measure", measuring)
    continuation(STUDENT, TEACHER, prompts, FULL, GREEDY, ratios=[0.25])
    cut = round(0.25 * FULL)
    written = NativeEngine(TEACHER).sample(prompts.prompts, FULL, GREEDY, 0)
    for answer, teachers in zip(measuring.call_args_list[0].args[0], written, strict=True):
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


def test_a_fraction_of_one_or_more_is_refused(prompts):
    with pytest.raises(RecipeError, match="got 1"):
        continuation(STUDENT, TEACHER, prompts, FULL, GREEDY, ratios=[1.0])


def measured(prompts, *shares):
    """Returns accuracies with these fractions of 100 problems solved, always the same problems first."""
    like = evaluate(NativeEngine(STUDENT), prompts, FULL, GREEDY)[0]
    tables = [[1.0] * round(100 * share) + [0.0] * round(100 - 100 * share) for share in shares]
    return {
        ratio: replace(like, accuracy=share, scores=tuple(scores), problems=100)
        for ratio, share, scores in zip((0.0, 0.1, 0.5), shares, tables, strict=True)
    }


def test_sentences_say_what_the_numbers_say(prompts):
    found = Continuation(200, {"before": measured(prompts, 0.3, 0.6, 0.6), "after": measured(prompts, 0.9, 0.9, 0.9)})
    gain, (low, high) = found.gain("before")
    assert gain == pytest.approx(0.3)
    assert 0.15 < low < 0.3 < high < 0.45
    assert found.gain("after") == (0, (0, 0))
    assert (found.needed("before"), found.needed("after")) == (0.1, 0.0)
    sentences = found.sentences()
    assert "with 100 tokens from the teacher accuracy goes from 30.0 % to 60.0 %, +30.0 points" in sentences[0]
    assert "before: a prefix of 20 tokens already helps as much" in sentences[1]
    assert "after: there is no evidence" in sentences[3]
    falls = Continuation(200, {"before": measured(prompts, 0.9, 0.6, 0.3)})
    assert falls.gain("before")[0] == pytest.approx(-0.6)
    assert "-60.0 points" in falls.sentences()[0]


def test_the_command_on_a_student_before_and_after(command, tiny, tmp_path):
    options = ["--set", EVALUATION, "--set", f"rollout.full_tokens={FULL}", "--ratios", "0.99,0"]
    after = ["--after", "package:hopd/quickstart/teacher", "--problems", "8", "--out", tmp_path / "c"]
    ended = command("continuation", tiny, *options, *after)
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "c" / "continuation.json").read_text())
    before, after = written["accuracy"]["before"], written["accuracy"]["after"]
    assert (list(before), before["0"]["problems"]) == (["0", "0.99"], 8)
    assert before["0"]["accuracy"] < before["0.99"]["accuracy"] == after["0"]["accuracy"] == after["0.99"]["accuracy"]
    assert all(sentence in ended.out for sentence in written["sentences"])
    assert (tmp_path / "c" / "continuation.png").stat().st_size > 10_000


def test_the_recipes_evaluation_is_what_is_continued(tiny):
    recipe = Recipe.load(tiny, [EVALUATION, f"rollout.full_tokens={FULL}"])
    found = continuation_recipe(recipe, ratios=[0.0]).accuracy["before"][0.0]
    chosen = encode(RepeatedAddition(2, 24, held_out=True), STUDENT.tokenizer, chat=False, max_tokens=100)
    assert found == evaluate(NativeEngine(STUDENT), chosen, FULL, GREEDY)[0]


def test_what_cannot_be_checked_is_refused(tiny):
    with pytest.raises(RecipeError, match="answers that can be checked"):
        continuation_recipe(Recipe.load(tiny))
    with pytest.raises(RecipeError, match="answers that can be checked"):
        continuation_recipe(Recipe.load(tiny, [EVALUATION, "evaluation.measure=divergence"]))

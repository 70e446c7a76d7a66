"""The segment ablation: short trainings, each with loss on one segment of full rollouts."""

import json

import numpy as np
import pytest

from hopd.analysis.segments import Segments, Trained, recipe_for_segment, segments_recipe, train_segment
from hopd.errors import RecipeError
from hopd.recipe import Recipe

EVALUATION = "evaluation={task: {source: addition, steps: 1, size: 16, seed: 9}, every: 1, temperature: 0}"


def test_each_segment_is_trained_on_full_rollouts_and_evaluated_to_the_full_length(tiny, tmp_path):
    recipe = Recipe.load(tiny, [EVALUATION])
    found = segments_recipe(recipe, 2, tmp_path / "parts", starts=[0.0, 0.5], width=0.25)
    assert [(part.start, part.end) for part in found.parts] == [(0.0, 0.25), (0.5, 0.75)]
    for part in found.parts:
        run = tmp_path / "parts" / f"{part.start:g}-{part.end:g}"
        first, last = map(json.loads, (run / "evaluations.jsonl").read_text().splitlines())
        assert (first["step"], first["score"], last["step"], last["score"]) == (0, found.untrained, 2, part.score)
        assert last["trained_tokens"] == pytest.approx(0.25 * last["generated_tokens"], rel=0.1)
        assert last["generated_tokens"] > 2 * 4 * 8 * 2  # the recipe's own horizon is 8
        assert part.score == pytest.approx(np.mean(part.scores), abs=1e-6)
        assert len(part.scores) == 16
    before = (run / "evaluations.jsonl").read_text()  # with the seconds that each took
    assert segments_recipe(recipe, 2, tmp_path / "parts", starts=[0.0, 0.5], width=0.25) == found
    assert (run / "evaluations.jsonl").read_text() == before
    assert train_segment(recipe_for_segment(recipe, 2, tmp_path / "parts", 0.5, 0.75))[1] == list(found.parts[1].scores)


def parts(*scores):
    return tuple(Trained(i / 5, i / 5 + 0.1, float(np.mean(of)), tuple(of)) for i, of in enumerate(scores))


def test_sentences_say_what_the_numbers_say():
    bad, good, mixed = [0.0] * 60, [1.0] * 60, [0.0, 1.0] * 30
    best_first = Segments(16, 0.1, parts(good, mixed, bad))
    assert [gain for gain, _ in best_first.against_first()] == [-0.5, -1.0]
    first, second = best_first.sentences()
    assert "the segment 0–0.1 teaches most: the score goes from 0.100 to 1.000" in first
    assert "0.2–0.3 by -0.500, the segment 0.4–0.5 by -1.000" in second
    best_later = Segments(16, 0.1, parts(bad, good))
    assert "the segment 0.2–0.3 teaches most" in best_later.sentences()[0]
    assert "by +1.000" in best_later.sentences()[1]
    assert "No later segment" in Segments(16, 0.1, parts(mixed, mixed[::-1])).sentences()[1]


def test_the_command_writes_figure_and_numbers(command, tiny, tmp_path):
    options = ["--set", EVALUATION, "--steps", "1", "--starts", "0,0.5", "--out", tmp_path / "s"]
    ended = command("segments", tiny, *options)
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "s" / "segments.json").read_text())
    assert [(part["start"], part["end"]) for part in written["parts"]] == [(0.0, 0.1), (0.5, 0.6)]
    assert all(sentence in ended.out for sentence in written["sentences"])
    assert (tmp_path / "s" / "segments.png").stat().st_size > 10_000


def test_what_cannot_work_is_refused_before_anything_is_trained(command, tiny, tmp_path):
    recipe = Recipe.load(tiny, [EVALUATION])
    with pytest.raises(RecipeError, match="start < end <= 1"):
        segments_recipe(recipe, 1, tmp_path / "parts", starts=[0.0, 0.95])
    assert not (tmp_path / "parts").exists()
    with pytest.raises(RecipeError, match="evaluation section"):
        segments_recipe(Recipe.load(tiny), 1, tmp_path / "parts")
    ended = command("segments", tiny, "--set", EVALUATION, "--starts", "0;0.5")
    assert (ended.code, "got '0;0.5'" in ended.err) == (2, True)

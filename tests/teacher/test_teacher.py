import json
from typing import Any

import pytest
import torch

from hopd.assembly.models import load_models
from hopd.distiller import Distiller
from hopd.errors import ModelError, RecipeError
from hopd.forecast.preflight import preflight
from hopd.model import load
from hopd.model.vocabulary import compare_vocabularies
from hopd.objective import Detail, Full, LossTokens, Sampled, SampledSignal, distillation_loss
from hopd.recipe import Recipe
from hopd.rollout import NativeEngine, Prompt, Sampling, pack
from hopd.run.progress import Progress
from hopd.tasks import RepeatedAddition
from hopd.teacher import LocalTeacher, RoutedTeacher

STUDENT, TEACHER = "package:hopd/quickstart/student", "package:hopd/quickstart/teacher"


def rollouts(student, routes):
    problems = RepeatedAddition(2, len(routes)).problems
    prompts = [
        Prompt(p.id, torch.tensor(student.tokenizer(p.prompt).input_ids), route)
        for p, route in zip(problems, routes, strict=True)
    ]
    return NativeEngine(student).sample(prompts, 30, Sampling(), 0)


def test_a_local_teachers_scores_are_those_of_a_plain_forward(student, teacher):
    for temperature in (1.0, 0.5):
        made = rollouts(student, [None] * 3)
        (batch,) = pack(made, [(3, 25)] * 3, 10_000)
        signal = LocalTeacher(teacher, temperature).score(batch)
        scores = signal.log_prob(slice(0, len(batch.at.tokens)), batch.at.tokens)
        for n, score in enumerate(scores.tolist()):
            rollout = batch.rollouts[batch.at.row[n]]
            ids = torch.cat([rollout.prompt.ids, rollout.ids])[None]
            at = len(rollout.prompt.ids) + int(batch.at.position[n])
            with torch.no_grad():
                logits = teacher.model(input_ids=ids[:, :at]).logits[0, -1] / temperature
            assert score == pytest.approx(float(logits.log_softmax(-1)[batch.at.tokens[n]]), abs=1e-3)


def test_each_prompt_is_scored_by_its_own_teacher(student, teacher):
    made = rollouts(student, ["one", "two", "one", "two"])
    routed = RoutedTeacher({"one": LocalTeacher(teacher), "two": LocalTeacher(load(STUDENT))})
    batches = pack(made, [(0, r.length) for r in made], 10_000)
    assert [batch.teacher for batch in batches] == ["one", "two"]
    for batch, model in zip(batches, (teacher, student), strict=True):
        alone = LocalTeacher(model).score(batch).log_probs(slice(0, 50))
        torch.testing.assert_close(routed.score(batch).log_probs(slice(0, 50)), alone)


def test_preflight_asks_every_teacher_and_the_run_is_routed(tmp_path):
    """Most prompts belong to a teacher that is the student itself, and alone would give a loss of zero."""
    routes = ["same"] * 15 + ["other"]
    rows = [{"q": f"{i:03d}+185*c:", "who": route} for i, route in enumerate(routes)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe.parse(
        {
            "name": "routed",
            "output": str(tmp_path),
            "student": {"model": STUDENT},
            "teachers": {"same": {"model": STUDENT}, "other": {"model": TEACHER}},
            "task": {"source": "file", "path": str(tmp_path / "p.jsonl"), "prompt": "q", "teacher": "who"},
            "rollout": {"prompts": 16, "full_tokens": 40},
            "horizon": {"controller": "full"},
            "training": {"steps": 1, "learning_rate": 1e-4},
        }
    )
    run = Distiller.of(recipe, progress=Progress(quiet=True))
    assert any("real step" in line for line in preflight(run.parts))
    run.train()
    assert run.parts.directory.read("metrics")[0]["loss"] > 0


def test_a_teacher_that_is_not_there_is_named(student):
    (batch,) = pack(rollouts(student, ["mth"]), [(0, 5)], 1000)
    with pytest.raises(RecipeError, match=r"'mth'.*did you mean 'math'"):
        RoutedTeacher({"math": LocalTeacher(load(TEACHER)), "code": LocalTeacher(load(TEACHER))}).score(batch)


def test_a_teacher_of_sampled_log_probs_trains_like_a_local_one_and_refuses_more(student, teacher):
    (batch,) = pack(rollouts(student, [None] * 2), [(0, 20)] * 2, 10_000)
    local = LocalTeacher(teacher).score(batch)
    every = slice(0, len(batch.at.tokens))
    sampled = SampledSignal(local.log_prob(every, batch.at.tokens))
    hidden = batch.states(student.hidden(batch.ids)).detach()
    assert isinstance(batch.at, LossTokens)
    a, _ = distillation_loss(Sampled(), student.head, hidden, local, batch.at)
    b, _ = distillation_loss(Sampled(), student.head, hidden, sampled, batch.at)
    torch.testing.assert_close(a, b)
    assert Sampled().needs == Detail.SAMPLED < Full().needs
    with pytest.raises(TypeError, match="estimator 'sampled'"):
        distillation_loss(Full(), student.head, hidden, sampled, batch.at)


def test_vocabularies_are_compared_by_ids(student, teacher):
    assert compare_vocabularies(student, teacher) == []
    other = load(TEACHER)
    other.model.generation_config.eos_token_id = [1, 5]
    (note,) = compare_vocabularies(student, other)
    assert "stops on [1]" in note
    assert "on [1, 5]" in note


def test_models_that_pad_their_vocabularies_differently_share_what_they_have(student, tmp_path):
    wide = load(TEACHER)
    wide.model.resize_token_embeddings(64)
    wide.model.save_pretrained(tmp_path / "wide")
    wide.tokenizer.save_pretrained(tmp_path / "wide")
    recipe = Recipe.parse(
        {
            "name": "wide",
            "student": {"model": STUDENT},
            "teacher": {"model": str(tmp_path / "wide")},
            "task": {"source": "addition"},
            "rollout": {"prompts": 1, "full_tokens": 10},
            "horizon": {"controller": "full"},
            "training": {"steps": 1, "learning_rate": 1e-3},
        }
    )
    models = load_models(recipe, "cpu")
    assert {m.head.vocabulary for m in (models.student, models.teachers[None])} == {student.head.vocabulary}
    assert any("64 output rows" in note for note in models.notes)


def test_layers_are_dropped_and_the_rest_keeps_its_order(teacher):
    pruned = load(TEACHER, layers=[0, 2])
    assert len(pruned.model.model.layers) == 2
    torch.testing.assert_close(
        pruned.model.model.layers[1].mlp.up_proj.weight, teacher.model.model.layers[2].mlp.up_proj.weight
    )
    prompts = [Prompt(0, torch.tensor([5, 6, 7, 8]))]
    (rollout,) = NativeEngine(pruned).sample(prompts, 10, Sampling(temperature=0.0), 0)
    transformers_own: Any = pruned.model
    expected = transformers_own.generate(prompts[0].ids[None], max_new_tokens=10, do_sample=False)[0, 4:]
    assert rollout.ids.tolist() == expected.tolist()
    for layers in ([], [2, 0], [0, 3]):
        with pytest.raises(ModelError, match="rising numbers from 0 to 2"):
            load(TEACHER, layers=layers)

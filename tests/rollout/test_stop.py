"""What ends a rollout by `rollout.stop`: an id, a token, or the token that completes a text."""

import json

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hopd import Distiller, Recipe
from hopd.errors import RecipeError
from hopd.model import load
from hopd.model.stop import NO_STOP, Stop
from hopd.rollout import FinishReason, NativeEngine, Prompt, Rollout, Sampling, Stretch
from hopd.run.progress import Progress
from tests.teacher.scripted import STUDENT, equal, metrics, weights

T = 60


@pytest.fixture(scope="module")
def student():
    return load(STUDENT)


@pytest.fixture(scope="module")
def starts(student):
    prompts = [
        Prompt(n, torch.tensor(student.tokenizer(text).input_ids)) for n, text in enumerate(("041+185*c:", "7+2*c:"))
    ]
    return [Rollout.start(prompt, sample, 5) for prompt in prompts for sample in range(4)]


@pytest.fixture(scope="module")
def whole(student, starts):
    return NativeEngine(student).extend([Stretch(start, T) for start in starts], Sampling())


def stopped_at(model, stop, starts, limits=(T,)):
    """Samples with `stop`, in as many steps as there are limits."""
    model.stop = stop
    try:
        rollouts = starts
        for limit in limits:
            going = [rollout for rollout in rollouts if rollout.finish is FinishReason.HORIZON]
            longer = iter(NativeEngine(model).extend([Stretch(rollout, limit, True) for rollout in going], Sampling()))
            rollouts = [next(longer) if rollout.finish is FinishReason.HORIZON else rollout for rollout in rollouts]
        return rollouts
    finally:
        model.stop = NO_STOP


def first_with(tokenizer, ids, text):
    """Returns how many tokens it takes until the text is there; all where it never is."""
    return next((n for n in range(1, len(ids) + 1) if text in tokenizer.decode(ids[:n])), len(ids))


@settings(max_examples=12)
@given(data=st.data())
def test_a_text_ends_a_rollout_at_the_token_that_completes_it_in_one_step_or_in_several(student, starts, whole, data):
    tokenizer = student.tokenizer
    sampled = tokenizer.decode(data.draw(st.sampled_from(whole)).ids)
    begin = data.draw(st.integers(0, len(sampled) - 4))
    text = sampled[begin : begin + data.draw(st.integers(1, 4))]
    assume(tokenizer.unk_token_id not in tokenizer.encode(text, add_special_tokens=False))  # a part of a token's name
    limits = [*sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=3))), T]
    ended = stopped_at(student, Stop.of([text], tokenizer), starts, limits)
    assert any(rollout.finish is FinishReason.STOP for rollout in ended)
    for rollout, full in zip(ended, whole, strict=True):
        length = first_with(tokenizer, full.ids, text)
        assert rollout.ids.tolist() == full.ids[:length].tolist()
        torch.testing.assert_close(rollout.log_probs, full.log_probs[:length], rtol=0, atol=1e-4)
        by_text = text in tokenizer.decode(full.ids[:length])
        assert rollout.finish is (FinishReason.STOP if by_text else full.finish)


def test_an_id_and_a_token_end_a_rollout_as_the_models_own_end_does(student, starts, whole):
    colon = student.tokenizer.convert_tokens_to_ids(":")
    ended = stopped_at(student, Stop.of([colon, "<unk>"], student.tokenizer), starts)
    assert student.stop_ids == {1}
    for rollout, full in zip(ended, whole, strict=True):
        ends = [n for n, id in enumerate(full.ids.tolist(), 1) if id in (1, 2, colon)]
        assert rollout.ids.tolist() == full.ids[: ends[0] if ends else T].tolist()
        assert (rollout.finish is FinishReason.STOP) == bool(ends)


@pytest.fixture(scope="module")
def bytewise():
    """Makes a tokenizer of bytes and a few pairs, as those of large models are: a character may take several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"]
    )
    core.train_from_iterator(["\n\nQuestion: was ist größer?\n\nQuestion: 数を数える"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")


@settings(max_examples=60)
@given(data=st.data())
def test_a_responses_end_is_where_its_text_first_holds_the_stop_text(bytewise, data):
    alphabet = st.text("\nQ:ß数を ", min_size=1, max_size=6)
    stop = Stop.of(data.draw(st.lists(alphabet, min_size=1, max_size=2)), bytewise)
    ids = data.draw(st.lists(st.integers(0, len(bytewise) - 1), max_size=20))
    for text in data.draw(st.lists(st.sampled_from([*stop.texts, "\n\nQuestion:"]), max_size=3)):
        ids += bytewise(text).input_ids
    holds = [any(text in bytewise.decode(ids[:n]) for text in stop.texts) for n in range(1, len(ids) + 1)]
    first = holds.index(True) + 1 if any(holds) else None
    assert stop.end(ids) == first
    steps = (n for n in range(1, len(ids) + 1) if stop.completes(ids[max(0, n - stop.window) : n]))
    assert next(steps, None) == first


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ([""], "an empty text, which every answer contains"),
        ("<eos>", r"must be a list .* write stop: \['<eos>'\]"),
        (3, r"must be a list .* write stop: \[3\]"),
        (["a", None], "takes ids, tokens and texts, got None"),
        ([True], "takes ids, tokens and texts, got True"),
        ([1.5], "takes ids, tokens and texts, got 1.5"),
        ([["a"]], r"takes ids, tokens and texts, got \['a'\]"),
        ([-1], "from 0 to 2147483647, got -1"),
        ([10**5000], "must be below 2\\^63, got a number of about 4,983 digits"),
        pytest.param(10**5000, "must be below 2\\^63, got a number of about 4,983 digits", id="large"),
    ],
)
def test_an_end_that_cannot_be_is_refused_with_the_recipe(wanted, sentence):
    with pytest.raises(RecipeError, match=sentence) as raised:
        Recipe.parse(recipe("", stop=wanted))
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (["<|im_end|>"], r"no token '<\|im_end\|>'"),
        (["A B"], "cannot write the text 'A B', which it reads as '<unk>"),
        (["A" * 900], "cannot write the text"),
        ([99], "names the id 99, and the models share the ids 0 to 44 only"),
    ],
)
def test_an_end_that_the_student_does_not_have_is_refused_at_check(tmp_path, wanted, sentence):
    with pytest.raises(RecipeError, match=sentence) as raised:
        Distiller.of(Recipe.parse(recipe(tmp_path, stop=wanted)), progress=Progress(quiet=True))
    assert len(str(raised.value)) < 400


def recipe(output, **rollout):
    return {
        "name": "run",
        "output": str(output),
        "student": {"model": "package:hopd/quickstart/student"},
        "teacher": {"model": "package:hopd/quickstart/teacher"},
        "task": {"source": "addition", "steps": 1, "size": 64},
        "rollout": {"prompts": 4, "full_tokens": 40, **rollout},
        "horizon": {"controller": "truncated", "tokens": 4, "continue": True},
        "training": {"steps": 8, "learning_rate": 1e-3},
        "evaluation": {"task": {"source": "addition", "steps": 1, "size": 4, "held_out": True}, "at_start": False},
        "checkpoint": {"every": 3},
    }


def test_rollouts_that_continue_to_a_text_resume_to_the_same_bits(tmp_path):
    def run(name, **changes):
        content = recipe(tmp_path, stop=["=1", 7, "<unk>"]) | {"name": name} | changes
        Distiller.of(Recipe.parse(content), resume=True, progress=Progress(quiet=True)).train()
        return tmp_path / name

    whole = run("whole")
    run("cut", training={"steps": 5, "learning_rate": 1e-3}, evaluation=None)
    cut = run("cut", evaluation=recipe("")["evaluation"])
    assert equal(weights(whole), weights(cut))
    assert [line["stop_rate"] for line in metrics(whole) if line["rollouts"]] == [
        line["stop_rate"] for line in metrics(cut) if line["rollouts"]
    ]
    assert any(line.get("stop_rate") for line in metrics(whole))
    (evaluation,) = (json.loads(line) for line in (whole / "evaluations.jsonl").read_text().splitlines())
    assert evaluation["stop_rate"] > 0
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert not any("=1" in sample["response"] for sample in samples)
    with pytest.raises(RecipeError, match=r"rollout\.stop was"):
        run("cut", rollout=recipe("")["rollout"])

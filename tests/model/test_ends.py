"""Files that name different ends, and models that end by different ids, are pointed out before a run."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast

from hopd import Distiller, Recipe
from hopd.errors import RecipeError
from hopd.forecast.preflight import preflight
from hopd.model import load
from hopd.model.vocabulary import check_ends, end_of_turn
from hopd.run.progress import Progress

TOKENS = ["<bos>", "<eos>", "<end>", *"0123456789abcdefghijklmnopqrstuvwxyz+*:=;# "]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }} {{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}a {% endif %}"
)


def make(path, prefers=1, ends=(1, 2)):
    """Makes a model whose config declares `ends` and that prefers one of its first two."""
    core = Tokenizer(models.WordLevel({token: id for id, token in enumerate(TOKENS)}, unk_token="#"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "additional_special_tokens": ["<end>"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.chat_template = TEMPLATE
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = PhiConfig(vocab_size=len(TOKENS), max_position_embeddings=64, eos_token_id=[1, 2], **size)
    model = PhiForCausalLM(config)
    model.lm_head.bias.data[prefers] = 3.0
    model.generation_config.eos_token_id = list(ends)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def recipe(tmp_path, student, teacher, **changes):
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "{n}+1="}}\n' for n in range(8)))
    return Recipe.parse(
        {
            "name": "run",
            "output": str(tmp_path / "runs"),
            "student": {"model": student},
            "teacher": {"model": teacher},
            "task": {"source": "file", "path": str(tmp_path / "p.jsonl"), "prompt": "prompt"},
            "rollout": {"prompts": 8, "full_tokens": 30, "prompt_tokens": 16},
            "horizon": {"controller": "full"},
            "training": {"steps": 2, "learning_rate": 1e-3},
            **changes,
        }
    )


def checked(content):
    return list(preflight(Distiller.of(content, progress=Progress(quiet=True)).parts))


def test_an_end_that_a_file_names_and_that_ends_nothing_is_named_with_its_id(tmp_path):
    model = load(make(tmp_path / "m", ends=(2,)))
    model.config.eos_token_id = 2
    (note,) = check_ends(model, chat=False)
    assert "generation_config 2 '<end>'; config 2 '<end>'; tokenizer 1 '<eos>'" in note
    assert "Rollouts end on 2 '<end>' only" in note
    assert "write rollout: {stop: [1]}" in note
    model.tokenizer.eos_token = "<end>"
    assert not check_ends(model, chat=False)
    (note,) = check_ends(model, chat=True)
    assert "the chat template 1 '<eos>'" in note
    assert "stop: [1]" in note


def test_the_note_goes_once_the_recipe_names_the_end(tmp_path):
    path = make(tmp_path / "m", ends=(2,))
    named = recipe(tmp_path, path, path, rollout={"prompts": 1, "full_tokens": 9, "stop": [1, "7;"]})
    parts = Distiller.of(named, progress=Progress(quiet=True)).parts
    assert parts.student.stop_ids == parts.teachers[None].stop_ids == {1, 2}
    assert not any("different ends" in note for note in parts.notes)
    assert "rollouts end where the model's own do, and at id 1 '<eos>', the text '7;'" in parts.notes


def test_an_end_beyond_the_shared_vocabulary_is_named(tmp_path):
    model = load(make(tmp_path / "m", ends=(1, 45)))
    model.limit_vocabulary(40)
    assert any("45" in note and "beyond the 40 ids" in note for note in check_ends(model, chat=False))


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "{{ messages[0]['content'] }}"])
def test_a_template_without_an_end_of_turn_names_none(tmp_path, template):
    tokenizer = load(make(tmp_path / "m")).tokenizer
    assert end_of_turn(tokenizer) == 1
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) is None


def test_models_that_end_by_different_ids_are_told_apart_at_check_and_scored_as_one_class(tmp_path):
    student, teacher = make(tmp_path / "s", 1), make(tmp_path / "t", 2)
    (apart,) = (line for line in checked(recipe(tmp_path, student, teacher)) if line.startswith("ends:"))
    assert "1 '<eos>'" in apart
    assert "2 '<end>'" in apart
    assert "they end answers by different ids" in apart
    assert "write objective: {stop: class}" in apart
    one_class = recipe(tmp_path, student, teacher, objective={"estimator": "sampled", "stop": "class"})
    (known,) = (line for line in checked(one_class) if line.startswith("ends:"))
    assert "but stop: class adds them up" in known
    (alike,) = (
        line for line in checked(recipe(tmp_path, student, make(tmp_path / "a", 1))) if line.startswith("ends:")
    )
    assert "different ids" not in alike


def test_as_one_class_answers_keep_their_length(tmp_path):
    student, teacher = make(tmp_path / "s", 1), make(tmp_path / "t", 2)
    training = {"steps": 40, "learning_rate": 3e-3}

    def length(name, **objective):
        content = recipe(
            tmp_path, student, teacher, name=name, training=training, objective={"estimator": "sampled", **objective}
        )
        run = Distiller.of(content, progress=Progress(quiet=True))
        run.train()
        lines = run.parts.directory.read("metrics")
        return sum(line["mean_length"] for line in lines[20:]) / 20

    as_one, by_id = length("class", stop="class"), length("token")
    assert as_one < 8
    assert by_id > 1.2 * as_one


def test_a_teacher_that_gives_too_little_for_the_class_is_refused(tmp_path):
    student = make(tmp_path / "s")
    given = recipe(tmp_path, student, student, objective={"estimator": "top_k", "k": 45, "stop": "class"})
    with pytest.raises(RecipeError, match="not less than the vocabulary of 45"):
        checked(given)
    with pytest.raises(RecipeError, match="stop"):
        recipe(tmp_path, student, student, objective={"estimator": "sampled", "stop": "classes"})

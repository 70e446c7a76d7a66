"""Bad input: exit code 2, one sentence that says what to do, no traceback, and nothing written."""

import importlib.util
import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hopd.run.trackers import PACKAGES

STUDENT = Path(str(files("hopd") / "quickstart" / "student"))


@pytest.fixture
def refused(command, tmp_path):
    """Runs a command that must be refused as bad input, looks that nothing was written, and gives the sentence."""

    def run(*arguments):
        before = contents(tmp_path)
        ended = command(*arguments)
        assert ended.code == 2, ended.err
        assert_one_sentence(ended.err)
        assert contents(tmp_path) == before
        return ended.err

    return run


def assert_one_sentence(err):
    assert err.startswith("hopd: ")
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1, err
    assert len(err) < 500, err


def contents(directory):
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def sets(*settings):
    return [f"--set={setting}" for setting in settings]


def prompt_file(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"task={{source: file, path: '{path}'}}"


def tokenizer_beside(path):
    AutoTokenizer.from_pretrained(STUDENT).save_pretrained(path)
    return path


# The recipe.


@pytest.mark.parametrize(
    ("setting", "key", "nearest"),
    [
        ("trainig={steps: 2}", "trainig", "training"),
        ("training.learning_rat=1", "training.learning_rat", "learning_rate"),
        ("rollout.prompt=4", "rollout.prompt", "prompts"),
        ("objective.estimater=full", "objective.estimater", "estimator"),
        ("task.sise=4", "sise", "size"),
        ("horizon.token=4", "token", "tokens"),
        ("horizon.controller=truncate", "truncate", "truncated"),
        ("window={kind: frist, tokens: 3}", "frist", "first"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(refused, tiny, setting, key, nearest):
    sentence = refused("check", "--without-weights", tiny, *sets(setting))
    assert key in sentence
    assert f"did you mean '{nearest}'?" in sentence


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.steps=many", ["training.steps", "integer", "'many'"]),
        ("training.steps=2.5", ["training.steps", "integer", "2.5"]),
        ("training.learning_rate=fast", ["training.learning_rate", "number", "'fast'"]),
        ("rollout=4", ["rollout", "4"]),
        ("teacher=4", ["teacher", "4"]),
        ("student.layers=all", ["student.layers", "list", "'all'"]),
        ("objective.estimator=[full]", ["objective.estimator", "'full'"]),
        ("horizon=8", ["horizon", "8"]),
        ("horizon.tokens=eight", ["horizon tokens", "whole number", "'eight'"]),
        ("horizon={controller: truncated, ratio: a tenth}", ["horizon", "ratio", "a tenth"]),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_what_was_expected(refused, tiny, setting, words):
    sentence = refused("check", "--without-weights", tiny, *sets(setting))
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("training.steps=0", ["training.steps", "greater than or equal to 1", "0"]),
        ("training.learning_rate=-1", ["training.learning_rate", "greater than 0", "-1"]),
        ("training.learning_rate=.inf", ["training.learning_rate", "inf"]),
        ("training.learning_rate=.nan", ["training.learning_rate", "nan"]),
        ("training.betas=[0.9, 2.0]", ["betas", "2"]),
        ("training={epochs: .inf, learning_rate: 1e-4}", ["training.epochs", "inf"]),
        ("rollout.temperature=0", ["rollout.temperature", "greater than 0"]),
        ("rollout.top_p=1.5", ["rollout.top_p", "less than or equal to 1", "1.5"]),
        ("horizon.tokens=41", ["horizon tokens", "at most the full length 40", "41"]),
        ("horizon={controller: truncated, ratio: 10}", ["ratio must be in (0, 1]", "did you mean tokens: 10?"]),
        ("objective.beta=1", ["beta must lie between 0 and 1"]),
        ("training.mini_batch=3", ["mini_batch must divide rollout.prompts = 4", "3"]),
        ("name=../elsewhere", ["name", "../elsewhere"]),
        ("task.source=addtion", ["source", "addtion", "addition"]),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(refused, tiny, setting, words):
    sentence = refused("check", "--without-weights", tiny, *sets(setting))
    assert all(word in sentence for word in words), sentence


def test_a_missing_section_is_named(refused, tmp_path):
    (tmp_path / "half.yaml").write_text("name: half\ntask: {source: addition}\n")
    sentence = refused("check", "--without-weights", tmp_path / "half.yaml")
    assert all(f"{section} is missing" in sentence for section in ("student", "rollout", "horizon", "training"))


def test_a_recipe_that_does_not_exist_exits_with_2(process, tmp_path):
    ended = process("train", "nowhere.yaml", cwd=tmp_path)
    assert ended.code == 2
    assert_one_sentence(ended.err)
    assert "no recipe at nowhere.yaml" in ended.err
    assert str(tmp_path) in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"name: [a\nb: }", b"\xff\xfe\x00", b"\x00"])
def test_a_recipe_that_is_no_yaml_is_refused(refused, tmp_path, content):
    (tmp_path / "broken.yaml").write_bytes(content)
    assert "broken.yaml is not YAML" in refused("train", tmp_path / "broken.yaml")


@pytest.mark.parametrize("content", ["", "just a text", "[1, 2]"])
def test_a_recipe_that_holds_no_mapping_is_refused(refused, tmp_path, content):
    (tmp_path / "odd.yaml").write_text(content)
    assert "must hold a mapping" in refused("train", tmp_path / "odd.yaml")


def test_a_recipe_that_is_a_directory_is_refused(refused, tmp_path):
    assert "no recipe at" in refused("train", tmp_path)


@pytest.mark.parametrize("setting", ["training.steps", "name.first=1", "training.steps=[1"])
def test_an_override_that_cannot_be_read_is_quoted(refused, tiny, setting):
    assert repr(setting) in refused("train", tiny, *sets(setting))


def test_an_override_of_nothing_is_refused(refused, tiny):
    refused("train", tiny, *sets("=1"))


# The prompts.


def test_a_prompts_file_that_does_not_exist_exits_with_2(process, tiny, tmp_path):
    ended = process("train", tiny, *sets("task={source: file, path: none.jsonl}"), cwd=tmp_path)
    assert ended.code == 2
    assert_one_sentence(ended.err)
    assert "none.jsonl does not exist" in ended.err
    assert list(tmp_path.iterdir()) == [tiny]


def test_a_datasets_directory_that_does_not_exist_is_refused(refused, tiny):
    assert "./nothing/here" in refused("train", tiny, *sets("task={source: file, path: ./nothing/here}"))


def test_a_missing_column_is_named_with_those_that_are_there(refused, tiny, tmp_path):
    task = prompt_file(tmp_path / "p.jsonl", {"promt": "1+1", "answer": "2"})
    sentence = refused("train", tiny, *sets(task))
    assert "row 1: no column 'prompt'" in sentence
    assert "did you mean 'promt'?" in sentence
    assert "promt, answer" in sentence


@pytest.mark.parametrize("prompt", ["", "  \n", None, []])
def test_an_empty_prompt_is_refused_by_its_row(refused, tiny, tmp_path, prompt):
    task = prompt_file(tmp_path / "p.jsonl", {"prompt": "472+185*a:"}, {"prompt": prompt})
    assert "p.jsonl, row 2: the prompt is empty" in refused("train", tiny, *sets(task))


def test_a_prompt_that_is_a_number_is_refused_by_its_row(refused, tiny, tmp_path):
    task = prompt_file(tmp_path / "p.jsonl", {"prompt": 7})
    assert "p.jsonl, row 1" in refused("train", tiny, *sets(task))


def test_chat_messages_without_chat_are_refused(refused, tiny, tmp_path):
    task = prompt_file(tmp_path / "p.jsonl", {"prompt": [{"role": "user", "content": "1+1"}]})
    assert "write chat: true" in refused("train", tiny, *sets(task))


def test_chat_without_a_chat_template_is_refused(refused, tiny):
    assert "write chat: false" in refused("train", tiny, *sets("task.chat=true"))


def test_a_prompts_file_that_is_no_json_is_refused_by_its_line(refused, tiny, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "1"}\n{"prompt": \n')
    assert "line 2: not JSON" in refused("train", tiny, *sets(f"task={{source: file, path: '{tmp_path / 'p.jsonl'}'}}"))


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_a_prompts_file_of_bytes_that_are_no_text_is_refused(refused, tiny, tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00\x01")
    assert name in refused("train", tiny, *sets(f"task={{source: file, path: '{tmp_path / name}'}}"))


def test_a_prompts_file_without_rows_is_refused(refused, tiny, tmp_path):
    assert "has no rows" in refused("train", tiny, *sets(prompt_file(tmp_path / "p.jsonl")))


def test_a_prompt_that_is_too_long_is_an_error_where_the_recipe_says_so(refused, tiny, tmp_path):
    rows = [{"prompt": "1" * 8}] * 4 + [{"prompt": "1" * 12}]
    settings = sets(prompt_file(tmp_path / "p.jsonl", *rows), "rollout.prompt_tokens=8", "rollout.too_long=error")
    assert "p.jsonl, row 5 has 12 tokens, more than the limit of 8" in refused("train", tiny, *settings)


def test_prompts_that_are_all_too_long_are_an_error_though_long_ones_are_dropped(refused, tiny):
    sentence = refused("train", tiny, *sets("rollout.prompt_tokens=5"))
    assert "every one of the 64 prompts is longer than 5 tokens" in sentence
    assert "rollout.prompt_tokens" in sentence


def test_fewer_prompts_than_a_step_needs_are_refused(refused, tiny):
    sentence = refused("train", tiny, *sets("task.size=3"))
    assert "a step needs 4 prompts" in sentence
    assert "has 3" in sentence


def test_a_prompt_of_an_unknown_teacher_is_refused_before_the_run_begins(refused, tiny, tmp_path):
    rows = [{"prompt": "472+185*a:", "of": "math"}] * 12 + [{"prompt": "472+185*a:", "of": "maths"}]
    task = prompt_file(tmp_path / "p.jsonl", *rows).replace("}", ", teacher: of}")
    settings = sets(task, "teacher=null", "teachers={math: {model: 'package:hopd/quickstart/teacher'}}")
    assert "'maths'" in refused("check", tiny, *settings)


# The models.


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize(
    "where", ["./no/such/model", "/no/such/model", "no-such/model", "package:hopd/quickstart/nobody"]
)
def test_a_model_that_does_not_exist_is_named(refused, tiny, role, where):
    assert where in refused("train", tiny, *sets(f"{role}.model={where}"))


def test_a_package_that_is_not_installed_is_named_with_how_to_install_it(refused, tiny):
    assert "pip install no_such_package" in refused("train", tiny, *sets("student.model=package:no_such_package/model"))


def test_a_directory_without_a_model_is_refused(refused, tiny, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused("train", tiny, *sets(f"student.model={tmp_path / 'empty'}"))


def test_pickled_weights_are_not_loaded(refused, tiny, tmp_path):
    pickled = tmp_path / "pickled"
    shutil.copytree(STUDENT, pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(AutoModelForCausalLM.from_pretrained(STUDENT).state_dict(), pickled / "pytorch_model.bin")
    sentence = refused("train", tiny, *sets(f"student.model={pickled}"))
    assert "safetensors" in sentence


def test_a_pickle_that_would_run_code_does_not_run_it(refused, tiny, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    shutil.copytree(STUDENT, tmp_path / "trap")
    (tmp_path / "trap" / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, tmp_path / "trap" / "pytorch_model.bin")
    refused("train", tiny, *sets(f"student.model={tmp_path / 'trap'}"))
    assert not (tmp_path / "sprung").exists()


def test_weights_that_are_cut_short_are_refused(refused, tiny, tmp_path):
    shutil.copytree(STUDENT, tmp_path / "short")
    weights = tmp_path / "short" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert str(tmp_path / "short") in refused("train", tiny, *sets(f"student.model={tmp_path / 'short'}"))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_that_lack_a_tensor_are_refused_and_not_made_up(refused, tiny, tmp_path, role):
    model = AutoModelForCausalLM.from_pretrained(STUDENT)
    lacking = {name: weight for name, weight in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tokenizer_beside(tmp_path / "lacking"), state_dict=lacking)
    assert "layers.1.mlp" in refused("check", tiny, *sets(f"{role}.model={tmp_path / 'lacking'}"))


def test_weights_of_another_shape_than_the_config_says_are_refused(refused, tiny, tmp_path):
    shutil.copytree(STUDENT, tmp_path / "wider")
    config = tmp_path / "wider" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 512}))
    assert str(tmp_path / "wider") in refused("train", tiny, *sets(f"student.model={tmp_path / 'wider'}"))


def test_a_config_that_is_no_json_is_refused(refused, tiny, tmp_path):
    shutil.copytree(STUDENT, tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{")
    assert str(tmp_path / "broken") in refused("train", tiny, *sets(f"student.model={tmp_path / 'broken'}"))


def test_a_model_without_its_tokenizer_is_refused(refused, tiny, tmp_path):
    AutoModelForCausalLM.from_pretrained(STUDENT).save_pretrained(tmp_path / "mute")
    assert "tokenizer" in refused("train", tiny, *sets(f"student.model={tmp_path / 'mute'}"))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_bert_is_refused_since_it_looks_at_later_tokens(refused, tiny, tmp_path, role):
    config = BertConfig(vocab_size=45, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    config.initializer_range = 0.2  # with the usual 0.02, a later token may move the others too little to be seen
    BertForMaskedLM(config).save_pretrained(tokenizer_beside(tmp_path / "bert"))
    sentence = refused("train", tiny, *sets(f"{role}.model={tmp_path / 'bert'}"))
    assert "is no causal language model" in sentence


def test_a_t5_is_refused_since_it_is_no_causal_language_model(refused, tiny, tmp_path):
    config = T5Config(vocab_size=45, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tokenizer_beside(tmp_path / "t5"))
    sentence = refused("train", tiny, *sets(f"student.model={tmp_path / 't5'}"))
    assert "as a causal language model" in sentence
    assert "T5Config" in sentence


def test_vocabularies_in_which_two_tokens_are_swapped_are_refused(refused, tiny, tmp_path):
    shutil.copytree(STUDENT, tmp_path / "swapped")
    file = tmp_path / "swapped" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["7"], vocabulary["8"] = vocabulary["8"], vocabulary["7"]
    file.write_text(json.dumps(tokenizer))
    sentence = refused("train", tiny, *sets(f"student.model={tmp_path / 'swapped'}"))
    assert "2 of 45 tokens differ" in sentence
    assert "'8' to the student, '7' to the teacher" in sentence


def test_a_context_too_small_for_prompt_and_full_length_is_refused_with_what_would_fit(refused, tiny):
    sentence = refused("train", tiny, *sets("rollout.full_tokens=1020"))
    assert "make 1030 tokens, more than the context" in sentence
    assert "full_tokens: 1014" in sentence


@pytest.mark.parametrize("objective", ["{estimator: full}", "{estimator: top_k, k: 4}", "{estimator: sampled}"])
@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_teacher_that_is_the_student_has_nothing_to_teach(refused, tiny, role, objective):
    both = f"package:hopd/quickstart/{role}"
    settings = sets(f"student.model={both}", f"teacher.model={both}", f"objective={objective}")
    assert "Are student and teacher the same model?" in refused("train", tiny, *settings)


def test_layers_that_the_model_does_not_have_are_refused(refused, tiny):
    assert "from 0 to 2" in refused("train", tiny, *sets("student.layers=[0, 3]"))


def test_more_likely_tokens_than_the_vocabulary_has_are_refused(refused, tiny):
    assert "estimator: full" in refused("train", tiny, *sets("objective={estimator: top_k, k: 45}"))


# The run's directory, trackers, evaluation.


def test_resuming_a_run_of_another_recipe_is_refused_with_what_changed(command, refused, tiny):
    assert command("train", tiny).code == 0
    sentence = refused("train", tiny, *sets("training.learning_rate=1e-3", "horizon.tokens=9"), "--resume")
    assert "training.learning_rate was 0.0001, now 0.001" in sentence
    assert "horizon.tokens was 8, now 9" in sentence
    assert "training.steps" not in sentence


def test_training_into_a_directory_that_holds_something_else_is_refused(refused, tiny, tmp_path):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "thesis.txt").write_text("mine")
    assert "runs/tiny holds another run" in refused("train", tiny)


@pytest.mark.parametrize("arguments", [[], ["--resume"]])
def test_an_output_that_is_a_file_is_refused(refused, tiny, tmp_path, arguments):
    (tmp_path / "runs").write_text("a file")
    assert str(tmp_path / "runs") in refused("train", tiny, *arguments)


def test_a_checkpoint_without_its_state_is_refused_by_its_name(command, refused, tiny, tmp_path):
    assert command("train", tiny).code == 0
    (tmp_path / "runs" / "tiny" / "checkpoints" / "step-000002" / "state.json").unlink()
    assert "step-000002" in refused("train", tiny, "--set=training.steps=3", "--resume")


def test_an_unknown_tracker_is_refused_with_the_known_ones(refused, tiny):
    sentence = refused("train", tiny, *sets("trackers=[wandbb]"))
    assert "trackers" in sentence
    assert "'wandb'" in sentence


@pytest.mark.parametrize("tracker", ["trackio", "wandb", "tensorboard"])
@pytest.mark.parametrize("name", ["train", "check"])
def test_a_tracker_that_is_not_installed_is_refused_with_how_to_install_it(refused, tiny, name, tracker):
    if any(map(importlib.util.find_spec, PACKAGES.get(tracker, (tracker,)))):
        pytest.skip(f"{tracker} is installed")
    assert f"pip install 'hopd[{tracker}]'" in refused(name, tiny, *sets(f"trackers=[{tracker}]"))


def test_eval_of_a_recipe_without_an_evaluation_is_refused(refused, tiny):
    assert "no evaluation section" in refused("eval", STUDENT, tiny)


def test_eval_of_a_model_that_does_not_exist_exits_with_2(process, tiny, tmp_path):
    evaluation = sets("evaluation={task: {source: addition, steps: 1, size: 4}}")
    ended = process("eval", tmp_path / "nobody", tiny, *evaluation)
    assert ended.code == 2
    assert_one_sentence(ended.err)
    assert f"no model at {tmp_path / 'nobody'}" in ended.err


def test_eval_into_a_directory_that_does_not_exist_is_refused(refused, tiny, tmp_path):
    evaluation = sets("evaluation={task: {source: addition, steps: 1, size: 4}}")
    assert "nowhere" in refused("eval", STUDENT, tiny, *evaluation, "--out", tmp_path / "nowhere" / "measures.json")


def test_an_evaluation_whose_answers_cannot_be_checked_is_refused_before_training(refused, tiny, tmp_path):
    evaluation = prompt_file(tmp_path / "p.jsonl", {"prompt": "1+1"}).replace("task=", "evaluation={task: ") + "}"
    assert "answer: COLUMN" in refused("train", tiny, *sets(evaluation))


def test_an_unknown_check_is_refused(refused, tiny, tmp_path):
    task = prompt_file(tmp_path / "p.jsonl", {"prompt": "1+1", "answer": "2"}).replace("}", ", check: maths}")
    assert "maths" in refused("train", tiny, *sets(task))


def test_an_unknown_gym_dataset_is_named_with_the_nearest_one(refused, tiny):
    pytest.importorskip("reasoning_gym")
    task = "task={source: reasoning_gym, name: basic_aritmetic, size: 8}"
    assert "did you mean 'basic_arithmetic'?" in refused("train", tiny, *sets(task))


def test_a_demo_into_a_directory_that_is_in_use_is_refused(refused, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_text("")
    assert "is not empty: remove it, or choose another directory" in refused("demo", "--out", tmp_path / "old")

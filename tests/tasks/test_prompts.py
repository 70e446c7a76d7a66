from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import hopd
from hopd.assembly.prompts import build_prompts
from hopd.errors import TaskError
from hopd.recipe import AdditionSource, RolloutSection
from hopd.rollout.rollout import FinishReason, Rollout
from hopd.tasks import PromptFile, PromptSet, RepeatedAddition, encode

TEMPLATE = "{% for message in messages %}{{ message.content }};{% endfor %}{% if add_generation_prompt %}#{% endif %}"


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(Path(hopd.__file__).parent / "quickstart" / "teacher")


@pytest.fixture
def lengths_3_to_7(tmp_path: Path) -> PromptFile:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "{"1234567"[:n]}"}}\n' for n in (3, 7, 5, 6, 4)), encoding="utf-8")
    return PromptFile(str(path))


def file_of(path: Path, *rows: str) -> PromptFile:
    path.write_text("\n".join(rows), encoding="utf-8")
    return PromptFile(str(path))


def texts(prompts: PromptSet) -> list[str]:
    return [str(prompts.tokenizer.decode(prompt.ids)) for prompt in prompts.prompts]


def test_a_prompt_is_its_own_tokens_and_nothing_else(tokenizer: PreTrainedTokenizerBase) -> None:
    task = RepeatedAddition(steps=3, size=20)
    prompts = encode(task, tokenizer, chat=False, max_tokens=10)
    assert texts(prompts) == [problem.prompt for problem in task.problems]
    assert all(prompt.ids.dtype == torch.int64 and prompt.ids.shape == (10,) for prompt in prompts.prompts)
    assert prompts.dropped == 0


def test_too_long_prompts_are_dropped_and_counted(
    tokenizer: PreTrainedTokenizerBase, lengths_3_to_7: PromptFile
) -> None:
    prompts = encode(lengths_3_to_7, tokenizer, chat=False, max_tokens=5)
    assert [(prompt.id, len(prompt.ids)) for prompt in prompts.prompts] == [(0, 3), (2, 5), (4, 4)]
    assert prompts.dropped == 2


def test_too_long_prompts_are_an_error_that_names_the_first_where_none_may_be_dropped(
    tokenizer: PreTrainedTokenizerBase, lengths_3_to_7: PromptFile
) -> None:
    with pytest.raises(TaskError, match=r"row 2 has 7 tokens, more than the limit of 5 \(2 such rows\); raise rollo"):
        encode(lengths_3_to_7, tokenizer, chat=False, max_tokens=5, too_long="error")
    assert encode(lengths_3_to_7, tokenizer, chat=False, max_tokens=7, too_long="error").dropped == 0


def test_nothing_left_is_an_error_that_counts_what_was_dropped(
    tokenizer: PreTrainedTokenizerBase, lengths_3_to_7: PromptFile
) -> None:
    with pytest.raises(TaskError, match="every one of the 5 prompts is longer than 2 tokens"):
        encode(lengths_3_to_7, tokenizer, chat=False, max_tokens=2)


def test_chat_without_a_template_is_an_error_that_says_what_to_write(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TaskError, match="no chat template; write chat: false"):
        encode(RepeatedAddition(3, 1), tokenizer, chat=True, max_tokens=100)


def test_chat_puts_a_text_into_the_template_as_the_users_message(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TEMPLATE
    task = RepeatedAddition(3, 5)
    prompts = encode(task, tokenizer, chat=True, max_tokens=100)
    assert texts(prompts) == [f"{problem.prompt};#" for problem in task.problems]


def test_chat_passes_messages_as_they_are(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.chat_template = TEMPLATE
    row = '{"prompt": [{"role": "system", "content": "a"}, {"role": "user", "content": "1+2"}]}'
    assert texts(encode(file_of(tmp_path / "rows.jsonl", row), tokenizer, chat=True, max_tokens=100)) == ["a;1+2;#"]


def test_the_limit_counts_the_tokens_of_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = TEMPLATE
    assert encode(RepeatedAddition(3, 5), tokenizer, chat=True, max_tokens=12).dropped == 0
    with pytest.raises(TaskError, match="every one of the 5 prompts is longer than 11 tokens"):
        encode(RepeatedAddition(3, 5), tokenizer, chat=True, max_tokens=11)


def test_messages_without_chat_are_an_error_that_says_what_to_write(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    task = file_of(tmp_path / "rows.jsonl", '{"prompt": [{"role": "user", "content": "1+2"}]}')
    with pytest.raises(TaskError, match="row 1 is a list of chat messages; write chat: true"):
        encode(task, tokenizer, chat=False, max_tokens=100)


def test_a_prompt_without_tokens_is_an_error_that_names_it(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ '' }}"
    with pytest.raises(TaskError, match="prompt 0 is empty"):
        encode(RepeatedAddition(3, 2), tokenizer, chat=True, max_tokens=100)


@pytest.mark.parametrize("messages", ['[{"role": "system", "content": "a"}]', '["1+2"]'])
def test_messages_that_the_template_refuses_are_an_error_that_names_the_prompt(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, messages: str
) -> None:
    tokenizer.chat_template = (
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ message.content }}{% endfor %}"
    )
    task = file_of(tmp_path / "rows.jsonl", f'{{"prompt": {messages}}}')
    with pytest.raises(TaskError, match=r"rows\.jsonl, row 1: the chat template refuses its messages"):
        encode(task, tokenizer, chat=True, max_tokens=100)


def test_the_teacher_of_a_problem_goes_with_its_prompt(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "12", "judge": "b"}\n{"prompt": "34", "judge": "a"}\n', encoding="utf-8")
    prompts = encode(PromptFile(str(path), teacher="judge"), tokenizer, chat=False, max_tokens=9)
    assert [prompt.teacher for prompt in prompts.prompts] == ["b", "a"]


def test_a_rollout_is_scored_by_its_own_problem_on_its_text_without_special_tokens(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    task = RepeatedAddition(3, 2)
    prompts = encode(task, tokenizer, chat=False, max_tokens=10)
    ids = torch.tensor(tokenizer(f"#{task.problems[1].answer}<eos>").input_ids)
    assert ids[-1] == tokenizer.eos_token_id
    rollouts = [Rollout(prompt, 0, ids, torch.zeros(len(ids)), FinishReason.STOP) for prompt in prompts.prompts]
    assert prompts.text(rollouts[1]) == f"#{task.problems[1].answer}"
    assert [prompts.score(rollout) for rollout in rollouts] == [0, 1]


def test_build_prompts_makes_the_task_that_a_recipe_names() -> None:
    source = AdditionSource(source="addition", steps=3, size=4, seed=5, held_out=True)
    rollout = RolloutSection(prompts=1, full_tokens=8, prompt_tokens=10)
    prompts = build_prompts(source, hopd.load("package:hopd/quickstart/student"), rollout)
    assert prompts.task == RepeatedAddition(3, 4, seed=5, held_out=True)
    assert texts(prompts) == [problem.prompt for problem in prompts.task.problems]

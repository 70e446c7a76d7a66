import pytest

from hopd.errors import TaskError
from hopd.tasks import ReasoningGym

NAMES = ["basic_arithmetic", "chain_sum", "gcd", "leg_counting", "spell_backward", "number_sorting"]


@pytest.mark.parametrize("name", NAMES)
def test_the_datasets_own_answer_scores_1_and_nonsense_does_not(name: str) -> None:
    task = ReasoningGym(name, size=5)
    assert len(task.problems) == 5
    for problem in task.problems:
        assert task.score(problem, problem.answer["answer"]) == 1
        assert task.score(problem, "xyzzy") < 1
        assert task.score(problem, "") < 1


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_of_one_problem_is_not_the_answer_of_all(name: str) -> None:
    task = ReasoningGym(name, size=10)
    answer = task.problems[0].answer["answer"]
    assert min(task.score(problem, answer) for problem in task.problems) < 1


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_the_question(name: str) -> None:
    task = ReasoningGym(name, size=3)
    assert [(problem.id, problem.prompt) for problem in task.problems] == [
        (number, task.dataset[number]["question"]) for number in range(3)
    ]


def test_the_text_in_the_last_answer_tag_is_scored() -> None:
    task = ReasoningGym("chain_sum", size=1)
    (problem,) = task.problems
    right = problem.answer["answer"]
    wrong = str(int(right) + 1)
    for response in [
        f"<answer>{right}</answer>",
        f"It is <answer>\n {right} \n</answer>, I think.",
        f"<answer>{wrong}</answer> No: <answer>{right}</answer>",
        f"<answer>{right}",
        f"  {right}\n",
    ]:
        assert task.score(problem, response) == 1, response
    for response in [
        f"<answer>{wrong}</answer>",
        f"<answer>{right}</answer> No: <answer>{wrong}</answer>",
        f"{right} <answer></answer>",
    ]:
        assert task.score(problem, response) < 1, response


def test_the_seed_alone_decides_the_problems() -> None:
    def prompts(seed: int) -> list[object]:
        return [problem.prompt for problem in ReasoningGym("basic_arithmetic", size=8, seed=seed).problems]

    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)


def test_options_reach_the_dataset() -> None:
    task = ReasoningGym("chain_sum", size=10, options={"min_terms": 7, "max_terms": 7})
    assert {problem.answer["metadata"]["num_terms"] for problem in task.problems} == {7}


def test_an_unknown_dataset_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(TaskError, match=r"no dataset 'chain_sums' \(did you mean 'chain_sum'\?\)"):
        ReasoningGym("chain_sums", size=1)


def test_an_unknown_option_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(TaskError, match=r"chain_sum has no option 'min_term' \(did you mean 'min_terms'\?\)"):
        ReasoningGym("chain_sum", size=1, options={"min_term": 2})


def test_options_that_the_dataset_refuses_are_an_error_with_its_reason() -> None:
    with pytest.raises(TaskError, match=r"refuses the options of chain_sum: .*max_terms"):
        ReasoningGym("chain_sum", size=1, options={"min_terms": 5, "max_terms": 2})

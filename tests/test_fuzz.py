"""Whatever a recipe, a setting or a prompt file holds, it is taken, or refused in one short sentence."""

import copy
import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hopd.errors import LONGEST, HopdError, RecipeError
from hopd.forecast.outlook import check_recipe, existing_run
from hopd.recipe import Recipe
from hopd.tasks import PromptFile, encode
from hopd.tasks.findings import findings

SHIPPED = sorted(Path(str(files("hopd"))).parents[1].glob("recipes/*.yaml"))
MANY_KEYS = """
name: many
student: {model: s, layers: [0, 1]}
teachers: {a: {model: t}, b: {server: "http://127.0.0.1:1", model: m}}
task: {source: file, path: x.jsonl, prompt: p, answer: a, teacher: who, chat: true, template: {a: 1}, limit: 3}
rollout: {prompts: 4, samples: 2, full_tokens: 100, stop: [1, x], engine: {kind: vllm}, mismatch_alarm: 0.1}
horizon: {controller: staged, stages: {0: 10, 5: 20}}
window: {kind: segment, start: 0.1, end: 0.4}
objective: {estimator: top_k, k: 4, importance_cap: 2, stop: class}
training: {epochs: 2, learning_rate: 1e-4, betas: [0.9, 0.99], schedule: wsd, decay: 0.1, ema: 0.9}
lora: {rank: 4, alpha: 8, targets: [q_proj]}
evaluation: {task: {source: addition, steps: 1, size: 3}, every: 5, samples: 2}
checkpoint: {every: 5}
"""
NUMBERS = (10**400, -(10**400), 2**63, 2**62, 10**12, 10**9, 5, 1, 0, -1, 0.5, -3.7, 1e308, 1e-320)
NO_NUMBERS = (float("inf"), float("nan"), "1e999", "1e4", "10^400", "9" * 5000, True, None)
TEXTS = ("", "x" * 5000, "é\u2028", "a\nb", "\ud800", "a\0b", "../x", "~", "{", "%s", "m:f", ":", "a.b:c.d", "${x}")
OTHERS: tuple[Any, ...] = (
    [],
    {},
    [[[[]]]],
    [1, "a"] * 500,
    {"a": {"b": 1}},
    {1: 2},
    {None: None},
    {"source": "file"},
    b"\xff",
    {1, 2},
)
LINES = (
    "a: &a [*a]",
    "seed: !!python/object:os.system x",
    "seed: !!timestamp x",
    "seed: !!int",
    "seed: !!bool x",
    "seed: 2020-99-99",
    "seed: 2020-01-01",
    "seed: 0777",
    "seed: 12:30",
    "seed: 1" + "0" * 5000,
    "seed: {1: 2}",
    "seed: " + "[" * 500,
    "seed: " + "{a: " * 40 + "1" + "}" * 40,
    "a: &a {k: 1}\nb: &b {<<: *a}\nc: {<<: [*a, *b]}",
    "[a, b]: c",
    "? {a: b}\n: c",
    "name: again",
    "\tname: tab",
    "seed: 'open",
    "---\nname: two",
    "%YAML 9.9",
    "\x07",
    "\ufeff",
    "<<: 7",
    "x" * 3000 + ": 1",
    "seed: *nowhere",
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(files("hopd") / "quickstart" / "student"))


def ends_in_a_sentence(run: Callable[[], object]) -> bool:
    """Runs it, and tells whether it was refused: any other error than hopd's own fails the test."""
    try:
        run()
    except HopdError as error:
        sentence = str(error)
    else:
        return False
    assert len(sentence) <= LONGEST, sentence
    assert len(sentence.splitlines()) == 1, sentence
    return True


def look(recipe: Recipe) -> None:
    """Does what `hopd check --without-weights` does with a recipe."""
    assert [*existing_run(recipe), *check_recipe(recipe, imports=False), recipe.yaml()]


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield (*at, key)
        yield from places(value, (*at, key))


def change(content: Any, random: Random) -> None:
    """Changes a value, a key, or takes one away."""
    *sections, key = random.choice(list(places(content)))
    for name in sections:
        content = content[name]
    odd = random.choice(random.choice((NUMBERS, NO_NUMBERS, TEXTS, OTHERS)))
    what = random.random()
    if what < 0.75:
        content[key] = copy.deepcopy(odd)
    elif what < 0.85:
        del content[key]
    elif isinstance(content, dict):
        content[f"{key}{'x' * random.choice((1, 3000))}" if what < 0.95 else random.choice((1, None, "\n", ""))] = odd


def test_1000_changed_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    whole = [yaml.safe_load(text) for text in (MANY_KEYS, *(path.read_text() for path in SHIPPED))]
    path, refused = tmp_path / "changed.yaml", 0
    for seed in range(1000):
        random = Random(seed)
        content = copy.deepcopy(random.choice(whole))
        if seed % 4 == 0:  # the text itself
            lines = yaml.safe_dump(content, sort_keys=False).splitlines()
            lines.insert(random.randint(0, len(lines)), random.choice(LINES))
            text = "\n".join(lines).encode("utf-8", "surrogatepass")
            at = random.randrange(len(text))
            path.write_bytes(text[:at] + bytes([random.randrange(256)]) + text[at:] if seed % 8 else text)
            refused += ends_in_a_sentence(lambda: look(Recipe.load(path, imports=False)))
        else:
            for _ in range(random.choice((1, 1, 2))):
                change(content, random)
            refused += ends_in_a_sentence(lambda: look(Recipe.parse(content, imports=False)))  # noqa: B023
    assert 700 < refused < 990  # and some changes harm nothing


def test_changed_settings(tiny: Path) -> None:
    random, keys = (
        Random(0),
        ["name", "seed", "training.steps", "rollout", "task.path", "horizon", "", ".", "a..b", "\0"],
    )
    odd = [*map(str, NUMBERS), *(str(value) for value in NO_NUMBERS if value), *TEXTS, *LINES, "{", "[*a]", "!!x y"]
    refused = 0
    for value in [*odd, *odd]:
        setting = f"{random.choice(keys)}{random.choice(('=', '=', '=', '', ':'))}{value}"
        refused += ends_in_a_sentence(lambda: look(Recipe.load(tiny, [setting], imports=False)))  # noqa: B023
    assert refused > len(odd)


MESSAGES: tuple[Any, ...] = (
    [{}],
    [{"role": "user"}],
    [{"role": "user", "content": None}],
    [{"role": 1, "content": [1, None]}],
    [{"role": "user", "content": [{"type": "text", "text": "1+1="}]}],
    [{"role": "assistant", "content": "1+1="}],
    [{"role": [], "content": {}}],
    [{"role": "x" * 600, "content": "1+1="}, None],
    [[{"role": "user", "content": "1+1="}]],
)
ROWS = (b"\xff\n", b"\xef\xbb\xbf", b"[1]\n", b"NaN\n", b"{}\n", b'{"prompt": ' + b"9" * 5000 + b"}\n", b"[" * 5000)
ODD_ROWS = (b"\x00\n", b"\r", b"a" * 2000 + b"\n", b'{"' + b"k" * 1000 + b'": 1}\n', b'{"a":' * 2000 + b"\n")
GOOD: tuple[dict[str, Any], ...] = (
    {"prompt": "1+1=", "answer": "2", "who": "a"},
    {"prompt": "3+4=", "answer": 7, "who": "b"},
    {"prompt": [{"role": "user", "content": "5+5="}], "answer": [10], "who": "a"},
)


def changed_rows(random: Random) -> bytes:
    """Makes some rows of which about half are odd."""
    content = b""
    for row in copy.deepcopy(random.sample(GOOD, random.randint(1, 3))):
        if random.random() < 0.4:
            odd = random.choice(random.choice((NUMBERS, NO_NUMBERS, TEXTS, OTHERS[:6], MESSAGES, MESSAGES)))
            row[random.choice(("prompt", "prompt", "answer", "who"))] = copy.deepcopy(odd)
        line = (json.dumps(row, ensure_ascii=random.random() < 0.5) + "\n").encode("utf-8", "surrogatepass")
        if random.random() < 0.1:
            at = random.randrange(len(line))
            line = line[:at] + random.choice((b"", bytes([random.randrange(256)]) + line[at:]))
        content += line + (random.choice((*ROWS, *ODD_ROWS)) if random.random() < 0.1 else b"")
    return content


def test_500_changed_prompt_files(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    chatty = copy.deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    path, refused = tmp_path / "changed.jsonl", 0

    def read(random: Random) -> None:
        chat, teacher = random.random() < 0.5, random.choice((None, None, "who"))
        column = random.choice(("prompt",) * 8 + ("promt", "prompt.x", "x" * 500))
        answer = random.choice((None, "answer", "answer.0"))
        task = PromptFile(str(path), column, answer, "exact", teacher=teacher, unique=random.random() < 0.3)
        made = encode(task, chatty if chat else tokenizer, chat=chat, max_tokens=random.choice((5, 500)))
        assert made.fingerprint
        assert all(findings(made, [0]))

    for seed in range(500):
        path.write_bytes(changed_rows(Random(seed)))
        refused += ends_in_a_sentence(lambda: read(Random(seed)))  # noqa: B023 (called at once)
    assert 150 < refused < 450


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("rollout.full_tokens=1" + "0" * 400, "rollout.full_tokens: a whole number must be below 2^63"),
        ("rollout.full_tokens=1" + "0" * 5000, "the value is not YAML"),
        ("rollout.full_tokens=10^400", "rollout.full_tokens: input should be a valid integer"),
        ("rollout.full_tokens=0777", "0777 is no number in base ten"),
        ("rollout.full_tokens=12:30", "12:30 is no number in base ten"),
        ("training={steps: 2, learning_rate: 1e-4, steps: 3}", "the key 'steps' comes twice"),
        ("training.learning_rate=1e999", "training.learning_rate: input should be a finite number"),
        ("task.template={a: {b: 10000000000000000000}}", "task.template.a.b: a whole number must be below 2^63"),
        ("name=2020-01-01", "name: 2020-01-01 is a date of YAML, which no key takes"),
        ("name=[*a]", "undefined alias"),
        ('output="a\\0b"', "output: the text holds '\\x00'"),
        ("output=" + "x" * 300, "is too long for the name of a file"),
        ("student.model=" + "x/" * 3000, "is too long for the name of a file"),
        ("name=&a [*a]", "sections are nested more than 32 deep"),
    ],
)
def test_a_value_that_no_recipe_can_hold_is_named(tiny: Path, setting: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        Recipe.load(tiny, [setting])
    assert words in str(error.value)
    assert len(str(error.value)) <= LONGEST


def test_aliases_of_aliases_are_refused_before_they_fill_the_memory(tiny: Path) -> None:
    names = "abcdefghi"
    bomb = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise(names))
    merged = "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in pairwise(names))
    for text, words in (
        (f"a: &a [1]\n{bomb}", "it holds more than 100,000 values"),
        (f"a: &a {{k: 1}}\n{merged}", "merged"),
    ):
        tiny.write_text(text)
        with pytest.raises(RecipeError, match=words):
            Recipe.load(tiny)


def test_a_long_run_is_looked_at_in_part(tiny: Path) -> None:
    lines = list(check_recipe(Recipe.load(tiny, ["training.steps=4000000000000000000"])))
    assert "length: 4,000,000,000,000,000,000 steps; below, the first 10,000 steps" in lines


def test_of_many_mistakes_the_first_ones_are_told(tiny: Path) -> None:
    with pytest.raises(RecipeError, match=r"unknown key a0; .*; and \d+ more$") as error:
        Recipe.load(tiny, [f"a{number}=1" for number in range(100)])
    assert len(str(error.value)) <= LONGEST

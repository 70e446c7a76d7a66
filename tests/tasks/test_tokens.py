"""Many texts are tokenised as each alone would be, and the cache changes nothing but the time."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hopd.tasks.tokens import KEPT, tokenize
from tests.tasks.letters import letters

TEXTS = [f"{a}+{b}=" for a in range(40) for b in range(40)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "hopd" / "prompts"


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab1+<bos>é", max_size=12), min_size=1, max_size=8), st.booleans(), st.sampled_from([1, 100]))
def test_ids_are_those_of_each_text_alone(cache: Path, texts: list[str], special: bool, cached_from: int) -> None:
    tokenizer = letters("<bos> $A")
    alone = [np.array(tokenizer(text, add_special_tokens=special).input_ids, np.int64) for text in texts]
    assert same(tokenize(texts, tokenizer, special, cached_from), alone)


def test_a_large_set_is_kept_and_read_again(cache: Path) -> None:
    first = tokenize(TEXTS, letters(), False, cached_from=1)
    (file,) = cache.iterdir()
    written = file.stat().st_ino, file.read_bytes()
    assert same(tokenize(TEXTS, letters(), False, cached_from=1), first)
    assert (file.stat().st_ino, file.read_bytes()) == written
    assert list(cache.iterdir()) == [file]


def test_a_small_set_is_not_kept(cache: Path) -> None:
    tokenize(TEXTS, letters(), False)
    assert not cache.exists()


def test_other_texts_or_another_tokenizer_are_not_taken_for_the_same(cache: Path) -> None:
    tokenize(TEXTS, letters(), False, cached_from=1)
    others = [(TEXTS[::-1], letters(), False), (TEXTS, letters("<bos> $A"), True), (["".join(TEXTS)], letters(), False)]
    for texts, tokenizer, special in others:
        made = tokenize(texts, tokenizer, special, cached_from=1)
        assert same(made, tokenize(texts, tokenizer, special, cached_from=10**9))


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_file_is_made_again(cache: Path, damage: bytes | None) -> None:
    first = tokenize(TEXTS, letters(), False, cached_from=1)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert same(tokenize(TEXTS, letters(), False, cached_from=1), first)
    assert same(tokenize(TEXTS, letters(), False, cached_from=1), first)


def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the directory should be")
    assert same(tokenize(TEXTS, letters(), False, cached_from=1), tokenize(TEXTS, letters(), False))


def test_old_files_leave_the_cache(cache: Path) -> None:
    for number in range(KEPT + 3):
        tokenize([f"{number}"], letters(), False, cached_from=1)
    assert len(list(cache.iterdir())) == KEPT

"""Says what ends a response besides the ids that a model declares: other ids, and texts that may span tokens."""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from hopd.errors import RecipeError, nearest, shown

MARKUP = re.compile(r"<\|.*\|>", re.DOTALL)  # the look of special tokens, which no text has


@dataclass(frozen=True)
class Stop:
    """Ends a response at a token of `ids`, or at the token that completes one of `texts`; that token is its last.

    A text counts where the decoded response, special tokens included, contains it. The prompt's text is no part of it.
    """

    ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, wanted: Sequence[int | str], tokenizer: PreTrainedTokenizerBase) -> "Stop":
        """Reads a recipe's `rollout.stop`: ids, names of special or added tokens, and texts.

        Raises `RecipeError` for a token that does not exist, and for a text that the tokenizer cannot write.
        """
        tokens: Mapping[str, int] = tokenizer.get_added_vocab()
        texts = tuple(dict.fromkeys(item for item in wanted if isinstance(item, str) and item not in tokens))
        ids = frozenset(item if isinstance(item, int) else tokens[item] for item in wanted if item not in texts)
        stop = cls(ids, texts, tokenizer)
        for text in texts:
            stop._check(text, tokens)
        return stop

    @cached_property
    def window(self) -> int:
        """Returns how many of a response's last tokens are decoded to look for a text; 0 without texts.

        A token has at least one byte. As many again leave room for tokens without text, and for the first one, which
        loses its space in some tokenizers.
        """
        return max((2 * len(text.encode()) + 2 for text in self.texts), default=0)

    def completes(self, ids: Sequence[int]) -> bool:
        """Tells whether the last of a response's tokens completes a text; the last `window` tokens are enough."""
        return bool(self.texts) and self._holds(ids[-self.window :])

    def end(self, ids: Sequence[int], start: int = 0) -> int | None:
        """Returns the length of the response up to the first token, from `start` on, that completes a text; None if
        none does."""
        begin = max(0, start - self.window)
        if not self.texts or not self._holds(ids[begin:]):
            return None
        lengths = range(start + 1, len(ids) + 1)
        return lengths[bisect_left(lengths, True, key=lambda length: self._holds(ids[begin:length]))]

    def before(self, text: str) -> str:
        """Returns an answer's text up to the stop text that ended it."""
        found = [place for stop in self.texts if (place := text.find(stop)) >= 0]
        return text[: min(found)] if found else text

    def __str__(self) -> str:
        assert self.tokenizer is not None
        ids = [f"{id} {self.tokenizer.convert_ids_to_tokens(id)!r}" for id in sorted(self.ids)]
        return ", ".join([*(["id " + ", ".join(ids)] if ids else []), *(f"the text {text!r}" for text in self.texts)])

    def _holds(self, ids: Sequence[int]) -> bool:
        decoded = self._decoded(ids)
        return any(text in decoded for text in self.texts)

    def _decoded(self, ids: Sequence[int]) -> str:
        assert self.tokenizer is not None
        decode = self.tokenizer.decode
        return str(decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _check(self, text: str, tokens: Mapping[str, int]) -> None:
        if MARKUP.fullmatch(text):
            raise RecipeError(
                f"rollout.stop: the student has no token {shown(text)}{nearest(text, tokens)}; name a token of its "
                "tokenizer, an id, or a text"
            )
        assert self.tokenizer is not None
        written = self._decoded(self.tokenizer(text, add_special_tokens=False).input_ids)
        if text.strip() not in written:
            raise RecipeError(
                f"rollout.stop: the student's tokenizer cannot write the text {shown(text)}, which it reads as "
                f"{shown(written)}; so no answer would end there: write another text, or a token's id"
            )


NO_STOP = Stop()

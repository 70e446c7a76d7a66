"""Tokenises many texts at once. What takes long is kept in the user's cache, by content."""

import contextlib
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import tokenizers
import transformers
from numpy.typing import NDArray
from platformdirs import user_cache_path
from transformers import PreTrainedTokenizerBase

from hopd.tasks.track import track

Ids = NDArray[np.int64]

BATCH = 1024  # texts that are tokenised at once
CACHED_FROM = 20_000  # texts; fewer are tokenised in a few seconds
KEPT = 8  # files in the cache


def tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: bool, cached_from: int = CACHED_FROM
) -> list[Ids]:
    """Returns the token ids of each text, with the tokenizer's special tokens around it or without.

    `cached_from` texts or more are looked up in the user's cache, by a hash of them all and of everything in the
    tokenizer that decides their ids.
    """
    # A tokenizer whose code comes with the model may compute anything: its name and settings do not tell what.
    own = not type(tokenizer).__module__.startswith("transformers.") or not tokenizer.is_fast
    if own or len(texts) < cached_from:
        return _split(*_tokenize(texts, tokenizer, special))
    path = user_cache_path("hopd", appauthor=False) / "prompts" / f"{_key(texts, tokenizer, special)}.npz"
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError, BadZipFile), path.open("rb") as file:
        cached = np.load(file)
        found = _split(cached["ids"].astype(np.int64), cached["lengths"])
        path.touch()
        return found
    ids, lengths = _tokenize(texts, tokenizer, special)
    with contextlib.suppress(OSError):  # no room, or no right to write
        _keep(path, ids, lengths)
    return _split(ids, lengths)


def _tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: bool) -> tuple[Ids, Ids]:
    ids, lengths = list[Ids](), list[int]()
    waiting = track(texts, "tokenising prompts", len(texts))
    while batch := list(islice(waiting, BATCH)):
        made = tokenizer(batch, add_special_tokens=special, return_attention_mask=False, verbose=False).input_ids
        lengths += map(len, made)
        ids.append(np.fromiter(chain.from_iterable(made), np.int64))
    return np.concatenate(ids), np.array(lengths, np.int64)


def _split(ids: Ids, lengths: Ids) -> list[Ids]:
    ends = np.cumsum(lengths)
    return [ids[start:end] for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def _key(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special: bool) -> str:
    core = tokenizer.backend_tokenizer
    split = getattr(tokenizer, "split_special_tokens", False)
    versions = transformers.__version__, tokenizers.__version__
    digest = sha256(repr((type(tokenizer).__qualname__, versions, special, split, core.to_str())).encode())
    for text in texts:
        content = text.encode()
        digest.update(len(content).to_bytes(8) + content)
    return digest.hexdigest()[:32]


def _keep(path: Path, ids: Ids, lengths: Ids) -> None:
    """Writes a file of the cache as a whole, and removes those that were not used for longest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as made:
        new = Path(made) / path.name
        np.savez(new, ids=ids.astype(np.int32), lengths=lengths)
        new.replace(path)
    for old in sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)

"""The native engine decodes any Hugging Face causal LM in batches, in the process that trains it.

Prompts are prefilled once and shared by their samples. Sequences are padded on the left, so that all of them write the
same position of the cache at the same step; finished ones are dropped and the batch compacted. Rollouts that do not fit
in one batch decode in waves, those with prompts of similar length together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache

from hopd.compute.products import Projection
from hopd.model import LanguageModel
from hopd.recipe.sampling import Sampling
from hopd.rollout.engine import Engine
from hopd.rollout.native.acceleration import TokenDecoder, decoding, decoding_note
from hopd.rollout.native.cache import attends_everywhere, joined, new_cache
from hopd.rollout.native.mask import DecodingMask
from hopd.rollout.random import uniform
from hopd.rollout.rollout import FinishReason, Prompt, Rollout
from hopd.rollout.sampling import draw_tokens

PREFILLED, PREFILLED_BY_GPU = 2048, 16384  # prompt tokens in one forward pass: enough to keep the device busy
DRAWN_AHEAD = 64  # positions whose random numbers are drawn together
# Compact when at most this fraction of the sequences still runs: the copies stay O(1) a token. On a GPU a few more
# sequences cost little, and its graph must be recorded again afterwards.
COMPACT_AT, COMPACT_GPU_AT = 0.75, 0.5


@dataclass(frozen=True)
class _Unit:
    """Holds a prompt with those of its samples that decode in one wave."""

    index: int
    prompt: Prompt
    samples: range


class NativeEngine(Engine):
    """Samples from the student's own weights. `rows` limits the number of concurrent sequences, and with it the memory
    for keys and values."""

    def __init__(self, model: LanguageModel, rows: int = 64):
        self.model, self.rows = model, rows

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """Returns rollouts as `Engine.sample` does. Raises `TaskError` for a prompt that leaves no room in the context.

        A sharded model is unsharded meanwhile, so that no token waits for another process.
        """
        with self.model.sharding.unsharded():
            return self._sample(prompts, max_tokens, sampling, seed, samples) if prompts else []

    def check(self, longest: int) -> list[str]:
        """Returns how tokens are decoded."""
        return [decoding_note(self.model)]

    def _sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int
    ) -> list[Rollout]:
        for prompt in prompts:
            prompt.check_room(self.model.context)
        rollouts: dict[tuple[int, int], Rollout] = {}
        with decoding(self.model, min(self.rows, len(prompts) * samples)) as (project, decoder):
            for wave in self._waves(prompts, samples):
                rows = [(unit.index, sample) for unit in wave for sample in unit.samples]
                rollouts |= zip(rows, self._decode(wave, project, decoder, max_tokens, sampling, seed), strict=True)
        return [rollouts[key] for key in sorted(rollouts)]

    def _waves(self, prompts: Sequence[Prompt], samples: int) -> Iterator[list[_Unit]]:
        wave: list[_Unit] = []
        free = self.rows
        for index in sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids)):
            start = 0
            while start < samples:
                taken = range(start, min(samples, start + free))
                wave.append(_Unit(index, prompts[index], taken))
                start, free = taken.stop, free - len(taken)
                if free == 0:
                    yield wave
                    wave, free = [], self.rows
        if wave:
            yield wave

    def _decode(
        self,
        wave: Sequence[_Unit],
        project: Projection,
        decoder: TokenDecoder | None,
        max_tokens: int,
        sampling: Sampling,
        seed: int,
    ) -> list[Rollout]:
        model, device, context = self.model, self.model.device, self.model.context
        head, stop_ids = model.head, torch.tensor(sorted(model.stop_ids), device=device)
        prompts = [unit.prompt.ids for unit in wave]
        hidden, cache = self._prefill(prompts)
        mask = flush_right(prompts, device)[1]
        width = mask.shape[1]
        seen = DecodingMask(model, mask)

        unit_of_row = torch.tensor([i for i, unit in enumerate(wave) for _ in unit.samples], device=device)
        if len(unit_of_row) > len(wave):
            cache.reorder_cache(unit_of_row)  # type: ignore[arg-type]
            seen.reorder(unit_of_row)
            hidden = hidden[unit_of_row]
        rows = _Rows(
            live=torch.arange(len(unit_of_row), device=device),
            prompt=torch.tensor([unit.prompt.id for unit in wave], device=device)[unit_of_row],
            sample=torch.tensor([sample for unit in wave for sample in unit.samples], device=device),
            prompt_length=mask.sum(-1)[unit_of_row],
        )
        limit = min(max_tokens, context - int(rows.prompt_length.min())) if context else max_tokens
        room = None if context is None else context - rows.prompt_length
        if decoder is not None:
            cos, sin = decoder.angles(width + limit)
        record = _Record(len(unit_of_row), device)
        running = torch.ones_like(rows.live, dtype=torch.bool)
        length, stopped = torch.zeros_like(rows.live), torch.zeros_like(running)
        # To count the running sequences, the CPU waits for a GPU, so there it counts less often.
        look_every, compact_at = (1, COMPACT_AT) if device.type == "cpu" else (16, COMPACT_GPU_AT)

        for t in range(limit):
            if t % DRAWN_AHEAD == 0:
                ahead = torch.arange(t, t + DRAWN_AHEAD)
                draws = uniform(seed, rows.prompt.cpu(), rows.sample.cpu(), ahead).float().to(device)
            tokens, log_probs = draw_tokens(sampling, head.scale_and_cap(project(hidden)), draws[:, t % DRAWN_AHEAD])
            record.append(tokens, log_probs)
            length += running
            stop = (tokens[:, None] == stop_ids).any(-1) & running
            stopped |= stop
            running &= ~stop
            if room is not None:
                running &= t + 1 < room
            if t % look_every == 0:
                count = int(running.sum())
                if count == 0:
                    break
                if count <= compact_at * len(running):
                    kept = running.nonzero()[:, 0]
                    record.close_segment(rows.live, length, stopped)
                    cache.reorder_cache(kept)  # type: ignore[arg-type]
                    seen.reorder(kept)
                    rows, tokens, draws = rows.select(kept), tokens[kept], draws[kept]
                    running, length, stopped = running[kept], length[kept], stopped[kept]
                    room = None if room is None else room[kept]
            if t + 1 == limit:
                break
            positions = rows.prompt_length + t
            if context is not None:
                positions = positions.clamp(max=context - 1)  # for full sequences that wait to be dropped
            if decoder is None:
                hidden = model.hidden(tokens[:, None], seen.of_token(width + t), positions[:, None], cache)[:, -1]
            else:
                angles = cos[positions], sin[positions]
                hidden = decoder.hidden(tokens, angles, cache, first=width - rows.prompt_length)

        record.close_segment(rows.live, length, stopped)
        return record.rollouts(wave, max_tokens)

    def _prefill(self, prompts: Sequence[Int[Tensor, " _"]]) -> tuple[Float[Tensor, "R D"], Cache]:
        """Returns the hidden state of each prompt's last token, and the cache. Groups of similar length need little
        padding."""
        model, states, caches = self.model, [], []
        for group in _groups(prompts, model.device) if attends_everywhere(model.config) else [prompts]:
            ids, mask = flush_right(group, model.device)
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            caches.append(new_cache(model.config))
            states.append(model.hidden(ids, DecodingMask(model, mask).of_prompts(), positions, caches[-1])[:, -1])
        return torch.cat(states), joined(caches, max(map(len, prompts)))


@dataclass
class _Rows:
    """Holds the constants of the sequences that still run; `live` is a sequence's number in the wave."""

    live: Int[Tensor, " R"]
    prompt: Int[Tensor, " R"]
    sample: Int[Tensor, " R"]
    prompt_length: Int[Tensor, " R"]

    def select(self, kept: Int[Tensor, " K"]) -> "_Rows":
        return _Rows(*(tensor[kept] for tensor in vars(self).values()))


class _Record:
    """Collects sampled tokens, one tensor a step, in segments that end where the batch was compacted."""

    def __init__(self, rows: int, device: torch.device):
        self._ids: list[Int[Tensor, " R"]] = []
        self._log_probs: list[Float[Tensor, " R"]] = []
        self._pieces: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]
        self._length = torch.zeros(rows, dtype=torch.long, device=device)
        self._stopped = torch.zeros(rows, dtype=torch.bool, device=device)

    def append(self, ids: Int[Tensor, " R"], log_probs: Float[Tensor, " R"]) -> None:
        self._ids.append(ids)
        self._log_probs.append(log_probs)

    def close_segment(self, live: Int[Tensor, " R"], length: Int[Tensor, " R"], stopped: Bool[Tensor, " R"]) -> None:
        self._length[live], self._stopped[live] = length, stopped
        if not self._ids:
            return
        ids, log_probs = torch.stack(self._ids, dim=1).cpu(), torch.stack(self._log_probs, dim=1).cpu()
        for row, piece in zip(live.tolist(), zip(ids, log_probs, strict=True), strict=True):
            self._pieces[row].append(piece)
        self._ids, self._log_probs = [], []

    def rollouts(self, wave: Sequence[_Unit], max_tokens: int) -> list[Rollout]:
        rollouts = []
        owners = [(unit.prompt, sample) for unit in wave for sample in unit.samples]
        ended = zip(self._length.tolist(), self._stopped.tolist(), strict=True)
        for (prompt, sample), pieces, (length, stopped) in zip(owners, self._pieces, ended, strict=True):
            ids, log_probs = (torch.cat(parts)[:length].clone() for parts in zip(*pieces, strict=True))
            finish = FinishReason.STOP if stopped else FinishReason.HORIZON
            if not stopped and length < max_tokens:
                finish = FinishReason.CONTEXT
            rollouts.append(Rollout(prompt, sample, ids, log_probs.float(), finish))
        return rollouts


def _groups(prompts: Sequence[Int[Tensor, " _"]], device: torch.device) -> Iterator[Sequence[Int[Tensor, " _"]]]:
    """Yields groups of neighbours to prefill together; `prompts` are sorted by length, the longest first."""
    start, tokens = 0, PREFILLED if device.type == "cpu" else PREFILLED_BY_GPU
    while start < len(prompts):
        rows = max(1, tokens // len(prompts[start]))
        yield prompts[start : start + rows]
        start += rows


def flush_right(
    sequences: Sequence[Int[Tensor, " _"]], device: torch.device
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Pads sequences on the left to the longest, with id 0. Returns the ids and a mask that is True where they are
    real."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = sequence
        mask[row, width - len(sequence) :] = True
    return ids.to(device), mask.to(device)

"""The native engine decodes any Hugging Face causal LM in batches, in the process that trains it.

Prompts are read once for their samples. Sequences are padded on the left, so that all of them write the
same position of the cache at the same step; finished ones are dropped and the batch compacted. Rollouts that do not fit
in one batch decode in waves, those with prompts of similar length together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import Cache

from hopd.compute.products import Projection
from hopd.model import LanguageModel
from hopd.recipe.sampling import Sampling
from hopd.rollout.engine import Engine
from hopd.rollout.native.acceleration import TokenDecoder, decoding, decoding_note
from hopd.rollout.native.agreement import check_agreement
from hopd.rollout.native.cache import has_rows, row_of
from hopd.rollout.native.mask import DecodingMask
from hopd.rollout.native.prefix import Prefix, prefixes, read
from hopd.rollout.native.record import Record
from hopd.rollout.native.tails import Tails
from hopd.rollout.random import seeds, uniform
from hopd.rollout.rollout import Prompt, Rollout, Stretch, starts
from hopd.rollout.sampling import draw_tokens

DRAWN_AHEAD = 64  # positions whose random numbers are drawn together
# Compact when at most this fraction of the sequences still runs: the copies stay O(1) a token. On a GPU a few more
# sequences cost little, and its graph must be recorded again afterwards.
COMPACT_AT, COMPACT_GPU_AT = 0.75, 0.5


class NativeEngine(Engine):
    """Samples from the student's own weights. `rows` limits the number of concurrent sequences, and with it the memory
    for keys and values. With `keeps`, those of rollouts that will go on are kept between steps, so that they are as old
    as their tokens; otherwise such rollouts are read again, by the current weights."""

    def __init__(self, model: LanguageModel, rows: int = 64, keeps: bool = True):
        self.model, self.rows, self.keeps = model, rows, keeps

    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """Returns rollouts as `Engine.sample` does. Raises `TaskError` for a prompt that leaves no room in the
        context."""
        return self.extend(starts(prompts, max_tokens, seed, samples), sampling)

    @torch.no_grad()
    def extend(self, stretches: Sequence[Stretch], sampling: Sampling) -> list[Rollout]:
        """Returns longer rollouts as `Engine.extend` does. Raises `TaskError` for a prompt that leaves no room.

        A sharded model is unsharded meanwhile, so that no token waits for another process.
        """
        with self.model.sharding.unsharded():
            return self._extend(stretches, sampling) if stretches else []

    def check(self, longest: int) -> list[str]:
        """Returns how tokens are decoded. Raises `ModelError` for a model that decodes otherwise than it learns."""
        check_agreement(self, self.model)
        return [decoding_note(self.model)]

    def _extend(self, stretches: Sequence[Stretch], sampling: Sampling) -> list[Rollout]:
        for stretch in stretches:
            stretch.rollout.prompt.check_room(self.model.context)
        rollouts: dict[int, Rollout] = {}
        with decoding(self.model, min(self.rows, len(stretches))) as (project, decoder):
            for wave in self._waves(prefixes(stretches)):
                numbers = [number for prefix in wave for number in prefix.stretches]
                asked = [stretches[number] for number in numbers]
                rollouts |= zip(numbers, self._decode(wave, asked, project, decoder, sampling), strict=True)
        return [rollouts[number] for number in range(len(stretches))]

    def _waves(self, read_first: Sequence[Prefix]) -> Iterator[list[Prefix]]:
        """Yields what fits into a batch, the longest first; in each, prefixes with kept keys come last."""
        wave: list[Prefix] = []
        free = self.rows
        for prefix in sorted(read_first, key=lambda prefix: -len(prefix.ids)):
            start = 0
            while start < len(prefix.stretches):
                taken = prefix.stretches[start : start + free]
                wave.append(replace(prefix, stretches=taken))
                start, free = start + len(taken), free - len(taken)
                if free == 0:
                    yield sorted(wave, key=lambda prefix: prefix.cache is not None)
                    wave, free = [], self.rows
        if wave:
            yield sorted(wave, key=lambda prefix: prefix.cache is not None)

    def _decode(
        self,
        wave: Sequence[Prefix],
        stretches: Sequence[Stretch],
        project: Projection,
        decoder: TokenDecoder | None,
        sampling: Sampling,
    ) -> list[Rollout]:
        model, device, context = self.model, self.model.device, self.model.context
        head, stop_ids = model.head, torch.tensor(sorted(model.stop_ids), device=device)
        hidden, cache = read(model, decoder, wave)
        rows = _Rows.of(wave, stretches, context, device)
        width = int(rows.read.max())
        seen = DecodingMask(model, torch.arange(width, device=device) >= width - rows.read[:, None])
        limit = int(rows.room.max())
        # Where all rows end at the same token, the loop's end is theirs.
        room = None if int(rows.room.min()) == limit else rows.room
        if decoder is not None:
            cos, sin = decoder.angles(width + limit)
        record = Record(len(stretches), device)
        running = torch.ones_like(rows.live, dtype=torch.bool)
        length, stopped = torch.zeros_like(rows.live), torch.zeros_like(running)
        tails = Tails(model.stop, stretches)
        # To count the running sequences, the CPU waits for a GPU, so there it counts less often.
        look_every, compact_at = (1, COMPACT_AT) if device.type == "cpu" else (16, COMPACT_GPU_AT)

        for t in range(limit):
            if t % DRAWN_AHEAD == 0:
                ahead = torch.arange(t, t + DRAWN_AHEAD) + rows.before.cpu()[:, None]
                draws = uniform(rows.seed.cpu(), rows.prompt.cpu(), rows.sample.cpu(), ahead).float().to(device)
            tokens, log_probs = draw_tokens(sampling, head.scale_and_cap(project(hidden)), draws[:, t % DRAWN_AHEAD])
            record.append(tokens, log_probs)
            length += running
            stop = ((tokens[:, None] == stop_ids).any(-1) | tails.completed_by(tokens)) & running
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
                    self._keep(record, stretches, rows, cache, width, length, stopped | running)
                    cache.reorder_cache(kept)  # type: ignore[arg-type]
                    seen.reorder(kept)
                    rows, tokens, draws = rows.select(kept), tokens[kept], draws[kept]
                    tails.select(kept)
                    running, length, stopped = running[kept], length[kept], stopped[kept]
                    room = None if room is None else room[kept]
            if t + 1 == limit:
                break
            positions = rows.read + t
            if context is not None:
                positions = positions.clamp(max=context - 1)  # for full sequences that wait to be dropped
            if decoder is None:
                hidden = model.hidden(tokens[:, None], seen.of_token(width + t), positions[:, None], cache)[:, -1]
            else:
                angles = cos[positions], sin[positions]
                hidden = decoder.hidden(tokens, angles, cache, first=width - rows.read)

        record.close_segment(rows.live, length, stopped)
        self._keep(record, stretches, rows, cache, width, length, stopped)
        return record.rollouts(stretches, context)

    def _keep(
        self,
        record: Record,
        stretches: Sequence[Stretch],
        rows: "_Rows",
        cache: Cache,
        width: int,
        length: Int[Tensor, " R"],
        others: Bool[Tensor, " R"],
    ) -> None:
        """Keeps keys and values of the rollouts that will go on, except for `others`, which do not or still run."""
        if not (self.keeps and any(stretch.keep for stretch in stretches) and has_rows(cache)):
            return
        for row in (~others).nonzero()[:, 0].tolist():
            live, new = int(rows.live[row]), int(length[row])
            if stretches[live].keep and stretches[live].rollout.length + new == stretches[live].limit:
                record.caches[live] = row_of(cache, row, width - int(rows.read[row]), width + new - 1)


@dataclass
class _Rows:
    """Holds the constants of the sequences that still run: `live` is a sequence's number in the wave, `before` how many
    response tokens it had, `read` how many tokens with its prompt, and `room` how many more it may get."""

    live: Int[Tensor, " R"]
    seed: Int[Tensor, " R"]
    prompt: Int[Tensor, " R"]
    sample: Int[Tensor, " R"]
    before: Int[Tensor, " R"]
    read: Int[Tensor, " R"]
    room: Int[Tensor, " R"]

    @classmethod
    def of(
        cls, wave: Sequence[Prefix], stretches: Sequence[Stretch], context: int | None, device: torch.device
    ) -> "_Rows":
        rollouts = [stretch.rollout for stretch in stretches]
        lengths = [len(prefix.ids) for prefix in wave for _ in prefix.stretches]
        room = [stretch.limit - stretch.rollout.length for stretch in stretches]
        if context is not None:
            room = [min(tokens, context - length) for tokens, length in zip(room, lengths, strict=True)]
        columns = (
            torch.arange(len(rollouts)),
            seeds(rollout.seed for rollout in rollouts),
            torch.tensor([rollout.prompt.id for rollout in rollouts]),
            torch.tensor([rollout.sample for rollout in rollouts]),
            torch.tensor([rollout.length for rollout in rollouts]),
            torch.tensor(lengths),
            torch.tensor(room),
        )
        return cls(*(column.to(device) for column in columns))

    def select(self, kept: Int[Tensor, " K"]) -> "_Rows":
        return _Rows(*(tensor[kept] for tensor in vars(self).values()))

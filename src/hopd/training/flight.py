"""Keeps the rollouts in flight: those that a step left unfinished, because they continue in the next one.

A step deals rollouts to the processes, has them extended, and learns from those that ended. Where nothing continues,
every rollout ends in its step, and nothing is in flight between steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from hopd.errors import HorizonError
from hopd.horizon import Decision
from hopd.processes import Processes
from hopd.rollout import FinishReason, Prompt, Rollout, Stretch, fold
from hopd.training.mixture import Mixture
from hopd.training.order import PromptOrder, Start


@dataclass(frozen=True)
class Slot:
    """Holds a rollout that goes on until it stops by itself or has `end` response tokens; a reference answer has all of
    its tokens from the start."""

    rollout: Rollout
    end: int

    def stretch(self, decision: Decision) -> Stretch:
        """Returns what a step asks for: `decision.tokens` more if it continues, else all that is left."""
        limit = min(self.end, self.rollout.length + decision.tokens) if decision.continues else self.end
        return Stretch(self.rollout, limit, keep=limit < self.end)


class Flight:
    """Deals rollouts to the processes, and keeps those of this process that go on.

    A step calls `deal`, then `land` with what it dealt, extended, and at last `complete`; one that is given up before
    leaves everything as it was. `per_step` is the number of rollouts of a step unless a decision has another, and
    `full_tokens` is T. A `mixture` makes some of them reference answers, which end in the step that they begin in.
    Everything that it remembers is in `state_dict`, which all processes share, and in `state`.
    """

    def __init__(
        self,
        order: PromptOrder,
        per_step: int,
        full_tokens: int,
        seed: int,
        processes: Processes,
        mixture: Mixture | None = None,
    ):
        self.order, self.per_step, self.full_tokens, self.seed = order, per_step, full_tokens, seed
        self.processes, self.mixture = processes, mixture
        self.slots: list[Slot] = []  # of this process
        self.started = 0  # rollouts of all processes
        self.opened = 0  # slots of all processes in which rollouts continue
        self._slots: list[Slot] = []  # these are the three after the step that is under way
        self._started = self._opened = 0

    def deal(self, decision: Decision, step: int, mini_batch: int | None = None) -> list[list[Slot]]:
        """Returns this process's rollouts of a step: what is in flight, and new ones that fill the number up.

        They are one list, or, with `mini_batch`, one for every so many new rollouts over all processes. The samples of
        a prompt go to one process, the one that has least. All processes call it together, with the same decision.
        """
        flying = self.processes.gather([len(self.slots)])
        if mini_batch is not None and (decision.continues or any(flying)):
            raise HorizonError(
                f"rollouts continue in step {step} ({decision.reason}), so how many end in a step is not known; write "
                "no training.mini_batch, or continue: false"
            )
        ends, opened = self._ends(decision, sum(flying))
        starts, seed = self.order.starts(self.started, len(ends)), fold(self.seed, step)
        numbered = enumerate(zip(starts, ends, strict=True), self.started)
        begun = [self._begin(number, start, end, seed) for number, (start, end) in numbered]
        self._slots, self._started, self._opened = [], self.started + len(begun), opened
        if mini_batch is None:
            return [self.slots + self._share(begun, flying)]
        none = [0] * self.processes.size
        return [self._share(begun[i : i + mini_batch], none) for i in range(0, len(begun), mini_batch)]

    def land(self, slots: Sequence[Slot], rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Returns the extended rollouts of slots that ended; the others will go on, one step older."""
        ended = []
        for slot, rollout in zip(slots, rollouts, strict=True):
            if rollout.finish is FinishReason.HORIZON and rollout.length < slot.end:
                self._slots.append(Slot(rollout.aged(), slot.end))
            else:
                ended.append(rollout)
        return ended

    def complete(self) -> None:
        """Makes the step's outcome the state."""
        self.slots, self.started, self.opened = self._slots, self._started, self._opened

    def _begin(self, number: int, start: Start, end: int, seed: int) -> Slot:
        if self.mixture and self.mixture.is_reference(number):
            return Slot(Rollout.of_reference(*start, end, seed), end)
        return Slot(Rollout.start(*start, seed), end)

    def _ends(self, decision: Decision, flying: int) -> tuple[list[int], int]:
        """Returns at how many tokens the new rollouts of a step end, whole ones first, and the slots opened then."""
        cut, whole = decision.parts(self.per_step)
        end, new = decision.end or self.full_tokens, max(0, whole - flying)
        short = [decision.tokens] * (cut - max(0, flying - whole))
        if not decision.continues:
            return [end] * new + short, 0
        # The first rollouts of slots that open together are cut after 1, 2, … strides, so that as many end in each step
        # from the first on. Those that follow in a slot run to the end.
        opening, strides = max(0, whole - self.opened), -(-end // decision.tokens)
        first = [min(end, decision.tokens * (1 + i * strides // opening)) for i in range(opening)]
        return first + [end] * (new - opening) + short, max(whole, flying)

    def _share(self, begun: Sequence[Slot], loads: Sequence[int]) -> list[Slot]:
        """Returns this process's part, where `loads` counts the rollouts that each process has."""
        mine: list[Slot] = []
        loads = list(loads)
        for _, samples in groupby(begun, lambda slot: slot.rollout.prompt.id):
            group, rank = list(samples), loads.index(min(loads))
            loads[rank] += len(group)
            mine += group if rank == self.processes.rank else []
        return mine

    def state_dict(self) -> dict[str, int]:
        """Returns the counters as plain data."""
        return {"started": self.started, "opened": self.opened}

    def state(self, keep: bool = True) -> dict[str, Tensor]:
        """Returns the rollouts in flight of all processes, as named tensors in CPU memory; empty on a process that does
        not `keep` them. All processes call it together."""
        rank = self.processes.rank
        own = [{name: tensor.cpu() for name, tensor in _tensors(slot, rank).items()} for slot in self.slots]
        everywhere = self.processes.gather(own) if self.processes.total(len(own)) else []
        return {f"{i}.{name}": t for i, of_slot in enumerate(everywhere) for name, t in of_slot.items()} if keep else {}

    def load_state(self, counters: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` and `state` returned. Each rollout goes to the process that had it, or, of fewer
        processes, to one of them."""
        self.started, self.opened = counters["started"], counters["opened"]
        saved: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            number, name = key.split(".")
            saved.setdefault(int(number), {})[name] = tensor
        prompts = {prompt.id: prompt for prompt in self.order.prompts}
        slots = [_slot(saved[number], prompts, self.processes.device) for number in sorted(saved)]
        self.slots = [slot for rank, slot in slots if rank % self.processes.size == self.processes.rank]


def _tensors(slot: Slot, rank: int) -> dict[str, Tensor]:
    rollout = slot.rollout
    seed = rollout.seed if rollout.seed < 2**63 else rollout.seed - 2**64  # safetensors has no unsigned numbers
    described = torch.tensor([rank, rollout.prompt.id, rollout.sample, seed, slot.end])
    tensors = {"described": described, "ids": rollout.ids, "log_probs": rollout.log_probs}
    tensors["ages"] = rollout.age_of_tokens
    return tensors if rollout.cache is None else tensors | {"cache": rollout.cache}


def _slot(tensors: Mapping[str, Tensor], prompts: Mapping[int, Prompt], device: torch.device) -> tuple[int, Slot]:
    """Returns the rank of a process, and its slot."""
    rank, prompt, sample, seed, end = tensors["described"].tolist()
    cache = tensors.get("cache")
    rollout = Rollout(
        prompts[prompt],
        sample,
        tensors["ids"],
        tensors["log_probs"],
        FinishReason.HORIZON,
        seed % 2**64,
        tensors["ages"],
        None if cache is None else cache.to(device),
    )
    return rank, Slot(rollout, end)

"""Flies rollouts without a model: an engine extends them as their keys say, and threads stand for processes."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any, NamedTuple, TypeVar

import pytest
import torch
from torch import Tensor

from hopd.horizon import Decision
from hopd.processes import Processes
from hopd.rollout import FinishReason, Prompt, Rollout, Stretch, fold
from hopd.training.flight import Flight
from hopd.training.order import PromptOrder

T, PER_STEP = 40, 12
Value = TypeVar("Value")


class Meeting:
    """Lets threads do together what processes do together."""

    def __init__(self, size: int):
        self.barrier, self.said = Barrier(size), [list[Any]() for _ in range(size)]

    def gather(self, rank: int, values: list[Any]) -> list[Any]:
        self.said[rank] = values
        self.barrier.wait(10)
        everything = [value for said in self.said for value in said]
        self.barrier.wait(10)
        return everything


@dataclass(frozen=True)
class Threads(Processes):
    """Stands for processes: each is a thread, with a rank."""

    meeting: Meeting = None  # type: ignore[assignment]

    def gather(self, values: list[Value]) -> list[Value]:
        return self.meeting.gather(self.rank, values)

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.gather([tensor])).sum(0)


def together(size: int, work: Callable[[Processes], Value]) -> list[Value]:
    """Returns what each process's `work` returns, by rank."""
    if size == 1:
        return [work(Processes())]
    meeting = Meeting(size)

    def process(rank: int) -> Value:
        try:
            return work(Threads(rank, size, meeting=meeting))
        except BaseException:
            meeting.barrier.abort()  # the others need not wait
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(process, range(size)))


def flight(processes: Processes, seed: int = 0, samples: int = 2, prompts: int = 30) -> Flight:
    chosen = [Prompt(1000 + i, torch.tensor([i])) for i in range(prompts)]
    return Flight(PromptOrder(chosen, PER_STEP // samples, seed, samples), PER_STEP, T, seed, processes)


def extend(stretch: Stretch, step: int) -> Rollout:
    """Extends a rollout as an engine would. By itself it has 1 to 2 T tokens, and stops there or is at the end of its
    context. Its tokens are the step in which they were sampled."""
    before = stretch.rollout
    by_itself = 1 + fold(before.seed, before.prompt.id, before.sample) % (2 * T)
    length = min(stretch.limit, by_itself)
    assert length > before.length
    finish = FinishReason.HORIZON
    if length == by_itself:
        finish = FinishReason.CONTEXT if by_itself % 4 == 0 else FinishReason.STOP
    new = torch.full((length - before.length,), step)
    return before.extended(new, -new.float(), finish, new.float() if stretch.keep and step % 2 else None)


class Flown(NamedTuple):
    """Holds what a process did in a step: what it asked for, and the rollouts that ended."""

    asked: list[Stretch]
    ended: list[Rollout]


def fly(one: Flight, decisions: Sequence[Decision], first: int = 0) -> list[Flown]:
    steps = []
    for step, decision in enumerate(decisions, first):
        (slots,) = one.deal(decision, step)
        asked = [slot.stretch(decision) for slot in slots]
        steps.append(Flown(asked, one.land(slots, [extend(stretch, step) for stretch in asked])))
        one.complete()
    return steps


def named(rollout: Rollout) -> tuple[object, ...]:
    """Describes a rollout, with every token."""
    ages = rollout.age_of_tokens.tolist()
    return rollout.prompt.id, rollout.sample, rollout.seed, tuple(rollout.ids.tolist()), tuple(ages), rollout.finish


def key(rollout: Rollout) -> tuple[int, int, int]:
    return rollout.prompt.id, rollout.sample, rollout.seed


def joined(of_processes: Sequence[list[Flown]]) -> list[Flown]:
    """Adds up what the processes did in each step."""
    return [
        Flown([s for flown in step for s in flown.asked], [r for flown in step for r in flown.ended])
        for step in zip(*of_processes, strict=True)
    ]


def described(steps: Sequence[Flown]) -> list[tuple[object, ...]]:
    """Describes steps, whichever process did what."""
    return [
        (Counter((key(s.rollout), s.limit, s.keep) for s in step.asked), Counter(named(r) for r in step.ended))
        for step in steps
    ]


def lasting(rollouts: int, tokens: int, **options: Any) -> Decision:
    return Decision(tokens, "continued", rollouts, None, True, **options)


def never_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extend.__globals__, "fold", lambda *counters: 2 * T - 2)

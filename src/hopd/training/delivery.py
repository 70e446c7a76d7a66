"""A rollout engine with weights of its own: before it samples it gets the student's, and shows that it has them."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Float
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from hopd.errors import EngineError, HopdError, RecipeError, ServerUnavailable
from hopd.lora import merged_state_dict
from hopd.model import LanguageModel
from hopd.remote import Losses, fingerprint_ids
from hopd.rollout import Prompt, Rollout, Sampling
from hopd.rollout.engine import CopyEngine
from hopd.training.sharding import Sharding, gathered

ARRIVED = {torch.float32: 1e-3, torch.bfloat16: 0.2}  # nats a token of the probe that rounding explains


class Delivery:
    """An `Engine`: all its samples are of the student as it is. `dtype` is what the engine computes in. All processes
    call each method together.

    Raises `EngineError` where the engine's log-probs of a probe are not the student's, and `ServerUnavailable`, on all
    processes if on one.
    """

    def __init__(
        self,
        engine: CopyEngine,
        student: LanguageModel,
        sharding: Sharding,
        processes: Accelerator,
        dtype: torch.dtype,
    ):
        self.engine, self.student, self.sharding = engine, student, sharding
        self.processes, self.dtype = processes, dtype
        self.probe = fingerprint_ids(student.head.vocabulary)
        self.seconds = self.apart = 0.0  # of the last delivery

    def check(self, longest: int) -> Iterator[str]:
        """A sentence for each look before the run, or a `HopdError`."""
        rows, shared = self.student.model.get_output_embeddings().weight.shape[0], self.student.head.vocabulary
        if rows > shared:
            raise RecipeError(
                f"{self.student.name} has {rows} output rows, of which the teacher shares {shared}, and vLLM samples "
                "from all; write rollout.engine: {kind: native}"
            )
        looked_at: list[str] | HopdError = []
        if self._drives:
            try:
                looked_at = list(self.engine.check(longest))
            except HopdError as error:
                looked_at = error
        yield from self._agreed(looked_at)

    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        self._deliver()
        failure: ServerUnavailable | None = None
        made: list[Rollout] = []
        try:
            made = self.engine.sample(prompts, max_tokens, sampling, seed, samples) if prompts else []
        except ServerUnavailable as error:
            failure = error
        if float(self._sum(torch.tensor(float(failure is not None), device=self.processes.device))):
            raise failure or ServerUnavailable("another process could not have its rollouts sampled")
        self.engine.rest()
        return made

    def metrics(self) -> dict[str, float]:
        """Of the last delivery and, of servers, what faults cost since the last call."""
        delivered = {"delivery_seconds": self.seconds, "delivery_apart": self.apart}
        if not self.engine.shared:
            return delivered
        losses, self.engine.losses = self.engine.losses, Losses()
        return delivered | losses.metrics("rollout", self._sum, self.processes.device)

    @property
    def _drives(self) -> bool:
        """Whether this process fills a copy."""
        return self.processes.is_main_process or not self.engine.shared

    def _deliver(self) -> None:
        began = time.monotonic()
        weights, wanted = self._weights(), self._own_log_probs()
        received: Any = None
        if self._drives:
            try:
                received = self.engine.receive(weights)
                self.apart = self._compare(wanted)
            except HopdError as error:
                received = error
        del weights
        if not self.processes.is_main_process:
            self.engine.adopt(self._agreed(received))
        else:
            self._agreed(received)
        self.seconds = time.monotonic() - began

    def _agreed(self, mine: Any) -> Any:
        """The first process's, or this one's where each has a copy of its own; an error of any is raised by all."""
        if self.processes.num_processes == 1:
            theirs = [mine]
        elif self.engine.shared:
            theirs = broadcast_object_list([mine])
        else:
            theirs = [mine, *gather_object([mine])]
        for each in theirs:
            if isinstance(each, HopdError):
                raise each
        return theirs[0]

    @torch.no_grad()
    def _weights(self) -> dict[str, Tensor]:
        """Adapters merged, whole, in the engine's precision, by the names of a checkpoint. Tied ones are there by both
        names: vLLM would go on with the old vocabulary head. Empty where this process fills no copy."""
        whole = gathered(merged_state_dict(self.student.model), self._drives)
        weights = {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in whole.items()}
        return revert_weight_conversion(self.student.model, weights) if weights else {}

    @torch.no_grad()
    def _own_log_probs(self) -> Float[Tensor, " P"]:
        """The student's of the probe, at temperature 1."""
        ids = torch.tensor([self.probe], device=self.student.device)
        hidden = self.student.hidden(ids)[0, :-1]
        log_probs = self.student.head.logits(hidden).float().log_softmax(-1)
        self.sharding.part_again()
        return log_probs.gather(-1, ids[0, 1:, None])[:, 0].cpu()

    def _compare(self, wanted: Float[Tensor, " P"]) -> float:
        """How far the copies are from the student, at most. Raises `EngineError` beyond what rounding explains."""
        bound = ARRIVED[self.dtype]
        apart = {holder: float((mine - wanted).abs().mean()) for holder, mine in self.engine.score(self.probe).items()}
        for holder, nats in apart.items():
            if not nats <= bound:
                precision = str(self.dtype).removeprefix("torch.")
                raise EngineError(
                    f"{holder} does not decode with the student's weights after they were sent: on a probe of "
                    f"{len(self.probe)} tokens its log-probs and the student's are {nats:.3g} nats a token apart, and "
                    f"rounding in {precision} explains {bound:g}. Does it serve this student, in {precision} (--dtype)?"
                )
        return max(apart.values())

    def _sum(self, tensor: Tensor) -> Tensor:
        return self.processes.reduce(tensor, reduction="sum")

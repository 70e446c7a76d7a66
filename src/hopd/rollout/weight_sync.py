"""A rollout engine with weights of its own: before it samples it gets the student's, and shows that it has them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from hopd.errors import EngineError, HopdError, RecipeError
from hopd.model import LanguageModel
from hopd.model.adapters import merged_state_dict
from hopd.model.sharding import gathered
from hopd.processes import Processes
from hopd.remote import Losses, fingerprint_ids
from hopd.rollout.engine import CopyEngine, Engine
from hopd.rollout.rollout import Prompt, Rollout
from hopd.rollout.sampling import Sampling

ARRIVED = {torch.float32: 1e-3, torch.bfloat16: 0.2}  # nats a token of the fingerprint that rounding explains


class WeightSync(Engine):
    """Lets an engine that decodes with a copy sample from the student as it is. `dtype` is what the engine computes in.
    All processes call each method together.

    Raises `EngineError` where the engine's log-probs of a fingerprint are not the student's, and any error of one
    process on all of them.
    """

    def __init__(self, engine: CopyEngine, student: LanguageModel, processes: Processes, dtype: torch.dtype):
        self.engine, self.student, self.processes, self.dtype = engine, student, processes, dtype
        self.fingerprint = fingerprint_ids(student.head.vocabulary)
        self.seconds = self.apart = 0.0  # of the last update

    def check(self, longest: int) -> list[str]:
        rows, shared = self.student.model.get_output_embeddings().weight.shape[0], self.student.head.vocabulary
        if rows > shared:
            raise RecipeError(
                f"{self.student.name} has {rows} output rows, of which the teacher shares {shared}, and vLLM samples "
                "from all; write rollout.engine: {kind: native}"
            )
        with self._together():
            sentences = list(self.engine.check(longest)) if self._drives else []
        return self.processes.broadcast(sentences)

    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        self._update()
        made: list[Rollout] = []
        with self._together():
            made = self.engine.sample(prompts, max_tokens, sampling, seed, samples) if prompts else []
        self.engine.rest()
        return made

    def metrics(self) -> dict[str, float]:
        """Returns what the last update took and, of servers, what faults cost since the last call."""
        measured = {"weight_sync_seconds": self.seconds, "weight_sync_apart": self.apart}
        if not self.engine.shared:
            return measured
        lost, self.engine.losses = self.engine.losses, Losses()
        return measured | lost.metrics("rollout", self.processes)

    @property
    def _drives(self) -> bool:
        """Tells whether this process fills a copy."""
        return self.processes.is_first or not self.engine.shared

    @contextmanager
    def _together(self) -> Iterator[None]:
        """Raises an error of one process on all of them."""
        failure: HopdError | None = None
        try:
            yield
        except HopdError as error:
            failure = error
        self.processes.agree(failure)

    def _update(self) -> None:
        """Gives the engine the student's weights, and looks whether it has them."""
        began = time.monotonic()
        weights, wanted = self._weights(), self._own_log_probs()
        received: Any = None
        with self._together():
            if self._drives:
                received = self.engine.receive(weights)
                self.apart = self._compare(wanted)
        del weights
        if self.engine.shared:
            self.engine.adopt(self.processes.broadcast(received))
        self.seconds = time.monotonic() - began

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
        ids = torch.tensor([self.fingerprint], device=self.student.device)
        hidden = self.student.hidden(ids)[0, :-1]
        log_probs = self.student.head.logits(hidden).float().log_softmax(-1)
        self.student.sharding.reshard()
        return log_probs.gather(-1, ids[0, 1:, None])[:, 0].cpu()

    def _compare(self, wanted: Float[Tensor, " P"]) -> float:
        """How far the copies are from the student, at most. Raises `EngineError` beyond what rounding explains."""
        bound = ARRIVED[self.dtype]
        apart = {
            holder: float((mine - wanted).abs().mean()) for holder, mine in self.engine.score(self.fingerprint).items()
        }
        for holder, nats in apart.items():
            if not nats <= bound:
                precision = str(self.dtype).removeprefix("torch.")
                raise EngineError(
                    f"{holder} does not decode with the student's weights after they were sent: on a fingerprint "
                    f"of {len(self.fingerprint)} tokens its log-probs and the student's are {nats:.3g} nats a token "
                    f"apart, and rounding in {precision} explains {bound:g}. Does it serve this student, in "
                    f"{precision} (--dtype)?"
                )
        return max(apart.values())

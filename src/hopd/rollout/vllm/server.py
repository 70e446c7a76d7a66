"""Rollouts by `vllm serve`, one server or several: token ids go there, token ids and log-probs come back.

The servers must have their development endpoints on (VLLM_SERVER_DEV_MODE=1: weights, their version, the prefix cache)
and `--enable-scale-out` (`/inference/v1/generate`). Every answer says which weights sampled each of its tokens.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.errors import RecipeError, ServerUnavailable
from hopd.model import LanguageModel
from hopd.recipe import VllmServers
from hopd.recipe.sampling import Sampling
from hopd.remote import Backoff, Client, Fault, FaultKind, Losses
from hopd.rollout.rollout import Prompt, Rollout
from hopd.rollout.vllm.request import probe_params, requests
from hopd.rollout.vllm.transfer import Transfer, Versions, trainer, write_weights

GENERATE = "/inference/v1/generate"
HOW = "serve with VLLM_SERVER_DEV_MODE=1 in the environment and --enable-scale-out"
NCCL = """--weight-transfer-config '{"backend": "nccl"}'"""
Received = tuple[str, list[str]]  # the version of the weights, and the servers that have them


class VllmServerEngine:
    """A server that fails is asked again, or another one in its place, until the deadline. One that does not take new
    weights is left out until the next ones, if another does."""

    shared = True

    def __init__(self, model: LanguageModel, source: VllmServers):
        self.model, self.source = model, source
        self.client = Client(source, "the rollouts have not been sampled")
        self._versions = Versions()
        self._version, self._fresh = "", list(source.servers)
        self._transfers: dict[str, Transfer] = {}

    @property
    def losses(self) -> Losses:
        return self.client.losses

    @losses.setter
    def losses(self, losses: Losses) -> None:
        self.client.losses = losses

    def check(self, longest: int) -> Iterator[str]:
        """Raises `RecipeError` for a server that is not set up for this, `ServerUnavailable` if none answers."""
        if self.source.weights == "nccl" and not (find_spec("vllm") and torch.cuda.is_available()):
            raise RecipeError(
                "rollout.engine: weights: nccl goes from a GPU here, by vLLM (pip install 'hopd[vllm]'), and one is "
                "missing; write weights: file, and a directory that trainer and servers see"
            )
        gone: dict[str, Fault] = {}
        for server in self.source.servers:
            try:
                (served, *_) = self.client.models(server)
                self.client.once(server, "GET", "/weight_info")
                self.client.once(server, "POST", GENERATE, {"token_ids": [0], "sampling_params": probe_params()})
            except Fault as fault:
                if fault.kind == FaultKind.REJECTED:
                    raise RecipeError(f"{server} cannot be used for rollouts ({fault}); {HOW}") from None
                gone[server] = fault
                continue
            if self.source.weights == "nccl" and self.transfer_of(server) != "nccl":
                raise RecipeError(f"{server} takes no weights by NCCL; {HOW}, and {NCCL}")
            limit = served.get("max_model_len")
            if limit is not None and longest > limit:
                raise RecipeError(
                    f"the longest prompt and rollout.full_tokens make {longest} tokens, and {server} takes {limit}; "
                    f"serve with --max-model-len {longest}, or lower full_tokens"
                )
        silent = [f"{server} does not answer: {fault}" for server, fault in gone.items()]
        if len(silent) == len(self.source.servers):
            raise ServerUnavailable(silent[0])
        yield from (f"rollouts: {sentence}; going on with the others" for sentence in silent)
        how = "by NCCL" if self.source.weights == "nccl" else f"by a file in {self.source.directory}"
        well = [server for server in self.source.servers if server not in gone]
        yield f"rollouts: vLLM at {', '.join(well)}; weights go there {how} before each step"

    def transfer_of(self, server: str) -> str | None:
        """The weight transfer that it was started with. Raises `Fault`."""
        with _strictly():
            config = self.client.once(server, "GET", "/server_info?config_format=json")["vllm_config"]
            return (config["weight_transfer_config"] or {}).get("backend")

    def receive(self, weights: Mapping[str, Tensor]) -> Received:
        """Raises `ServerUnavailable` if no server has them within the deadline."""
        version = self._versions.next()
        if self.source.directory is not None:
            write_weights(weights, Path(self.source.directory))
        backoff = Backoff(self.source.backoff, self.source.deadline)
        while True:
            faults = {server: self._send(server, weights, version) for server in self.source.servers}
            if fresh := [server for server, fault in faults.items() if fault is None]:
                self.adopt((version, fresh))
                return version, fresh
            server, fault = next((server, fault) for server, fault in faults.items() if fault is not None)
            wait = backoff.fail(fault.retry_after)
            rejected = all(fault is not None and fault.kind == FaultKind.REJECTED for fault in faults.values())
            if rejected or not backoff.allows(wait):
                raise ServerUnavailable(
                    f"no rollout server has taken the new weights: {backoff.failed} attempts failed, with a deadline "
                    f"of {self.source.deadline:g} s; the last, at {server}: {fault}"
                )
            self.losses.retries += 1
            time.sleep(wait)
            self.losses.seconds += wait

    def adopt(self, received: Received) -> None:
        self._version, self._fresh = received

    def sample(
        self, prompts: Sequence[Prompt], max_tokens: int, sampling: Sampling, seed: int, samples: int = 1
    ) -> list[Rollout]:
        """See `Engine.sample`; weights must have been received. Raises `TaskError` and `ServerUnavailable`."""
        asked = requests(self.model, prompts, max_tokens, samples)

        def read(n: int, body: bytes) -> Rollout:
            with _strictly():
                (choice,) = json.loads(body)["choices"]
                places = choice["logprobs"]["content"]
                ids = [int(id) for id in choice["token_ids"]]
                log_probs = [float(place["logprob"]) for place in places]
                if ids != [place["token_id"] for place in places]:
                    raise ValueError("its log-probs are of other tokens")
                versions = [span["version"] for span in choice["weight_versions"]]
            return asked[n].rollout(ids, log_probs, versions, self._version)

        bodies = [
            {
                "token_ids": request.prompt.ids.tolist(),
                "sampling_params": request.sampling_params(sampling, seed),
            }
            for request in asked
        ]
        return self.client.ask(GENERATE, bodies, read, self._fresh)

    def score(self, ids: Sequence[int]) -> dict[str, Float[Tensor, " N"]]:
        """Raises `ServerUnavailable`."""
        body = {"token_ids": list(ids), "sampling_params": probe_params()}

        def read(n: int, answer: bytes) -> Float[Tensor, " N"]:
            with _strictly():
                places = json.loads(answer)["prompt_logprobs"][1:]
                return torch.tensor(
                    [float(place[str(id)]["logprob"]) for place, id in zip(places, ids[1:], strict=True)]
                )

        return {server: self.client.ask(GENERATE, [body], read, [server])[0] for server in self._fresh}

    def rest(self) -> None:
        pass

    def _send(self, server: str, weights: Mapping[str, Tensor], version: str) -> Fault | None:
        """One attempt at one server."""
        began = time.monotonic()
        try:
            if self.source.weights == "nccl":
                self._send_by_nccl(server, weights)
            else:
                assert self.source.directory is not None
                where = str(Path(self.source.directory).absolute())
                call = {"method": "reload_weights", "kwargs": {"weights_path": where}}
                self.client.once(server, "POST", "/collective_rpc", call)
            self.client.once(server, "POST", "/update_weight_version", {"new_version": version})
            # What is in the prefix cache was computed with the weights before.
            cleared = self.client.once(server, "POST", "/reset_prefix_cache")
            if not (isinstance(cleared, dict) and cleared.get("success")):
                raise Fault(FaultKind.MALFORMED, "it has not emptied its prefix cache: does it serve others too?")
        except Fault as fault:
            self._transfers.pop(server, None)
            self.losses.add(fault.kind, began)
            return fault
        return None

    def _send_by_nccl(self, server: str, weights: Mapping[str, Tensor]) -> None:
        try:
            if server not in self._transfers:
                workers = int(self.client.once(server, "GET", "/get_world_size")["world_size"])
                self._transfers[server] = trainer("nccl", _Control(self.client, server), server, workers)
            self._transfers[server].send(weights)
        except (RuntimeError, OSError) as error:  # NCCL's, and those of its meeting point
            raise Fault(FaultKind.DROPPED, f"weights did not get there by NCCL ({error})") from error


class _Control:
    """vLLM's calls around a transfer, of one server."""

    def __init__(self, client: Client, server: str):
        self.client, self.server = client, server

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update")

    def _post(self, path: str, content: dict[str, Any] | None = None) -> None:
        self.client.once(self.server, "POST", path, content)


@contextmanager
def _strictly() -> Iterator[None]:
    """What goes wrong inside, while an answer is read, is a `Fault` of the answer."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Fault(FaultKind.MALFORMED, f"its answer is cut off or not what was asked for ({error!r})") from error

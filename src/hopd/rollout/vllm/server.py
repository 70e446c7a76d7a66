"""Samples rollouts on one or several servers (`vllm serve`), with token ids in both directions.

The servers need their development endpoints (VLLM_SERVER_DEV_MODE=1: weights, their version, the prefix cache) and
`--enable-scale-out` (`/inference/v1/generate`). Every answer names the weights that sampled each token.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from hopd.errors import RecipeError, ServerUnavailable
from hopd.model import LanguageModel
from hopd.recipe import VllmServers
from hopd.recipe.sampling import Sampling
from hopd.remote import Backoff, Client, Fault, FaultKind, RequestStats
from hopd.rollout.rollout import Rollout, Stretch
from hopd.rollout.vllm.request import requests, scoring_params
from hopd.rollout.vllm.transfer import Transfer, Versions, trainer, write_weights

GENERATE = "/inference/v1/generate"
HOW = "serve with VLLM_SERVER_DEV_MODE=1 in the environment and --enable-scale-out"
NCCL = """--weight-transfer-config '{"backend": "nccl"}'"""
Received = tuple[str, list[str]]  # the version of the weights, and the servers that have them


class RemoteVllm:
    """Samples on the servers of `source`, which all processes share. A failed request is retried, on any server, until
    the deadline. A server that fails to take new weights is left out until the next ones, if another server has
    them."""

    shared = True

    def __init__(self, model: LanguageModel, source: VllmServers):
        self.model, self.source = model, source
        self.client = Client(source, "the rollouts have not been sampled")
        self._versions = Versions()
        self._version, self._fresh = "", list(source.servers)
        self._transfers: dict[str, Transfer] = {}

    @property
    def stats(self) -> RequestStats:
        """Returns faults and retries since they were last replaced."""
        return self.client.stats

    @stats.setter
    def stats(self, stats: RequestStats) -> None:
        self.client.stats = stats

    def check(self, longest: int) -> Iterator[str]:
        """Yields findings as `Engine.check` does. Raises `RecipeError` for a server that is not set up for rollouts,
        and `ServerUnavailable` if none answers."""
        if self.source.weights == "nccl" and not (find_spec("vllm") and torch.cuda.is_available()):
            raise RecipeError(
                "rollout.engine: weights: nccl needs a GPU and vLLM here (pip install 'hopd[vllm]'), and one of them "
                "is missing; write weights: file, and a directory that trainer and servers share"
            )
        gone: dict[str, Fault] = {}
        for server in self.source.servers:
            try:
                (model, *_) = self.client.models(server)
                self.client.once(server, "GET", "/weight_info")
                self.client.once(server, "POST", GENERATE, {"token_ids": [0], "sampling_params": scoring_params()})
            except Fault as fault:
                if fault.kind == FaultKind.REJECTED:
                    raise RecipeError(f"{server} cannot be used for rollouts ({fault}); {HOW}") from None
                gone[server] = fault
                continue
            if self.source.weights == "nccl" and self.transfer_of(server) != "nccl":
                raise RecipeError(f"{server} takes no weights by NCCL; {HOW}, and {NCCL}")
            limit = model.get("max_model_len")
            if limit is not None and longest > limit:
                raise RecipeError(
                    f"the longest prompt and rollout.full_tokens make {longest} tokens, and {server} takes {limit}; "
                    f"serve with --max-model-len {longest}, or lower full_tokens"
                )
        silent = [f"{server} does not answer: {fault}" for server, fault in gone.items()]
        if len(silent) == len(self.source.servers):
            raise ServerUnavailable(silent[0])
        yield from (f"rollouts: {sentence}; continuing with the others" for sentence in silent)
        how = "by NCCL" if self.source.weights == "nccl" else f"by a file in {self.source.directory}"
        working = [server for server in self.source.servers if server not in gone]
        yield f"rollouts: vLLM at {', '.join(working)}; weights are sent {how} before each step"

    def transfer_of(self, server: str) -> str | None:
        """Returns the backend of weight transfer that a server was started with. Raises `Fault`."""
        with _strictly():
            config = self.client.once(server, "GET", "/server_info?config_format=json")["vllm_config"]
            return cast(str | None, (config["weight_transfer_config"] or {}).get("backend"))

    def receive(self, weights: Mapping[str, Tensor]) -> Received:
        """Sends the weights to all servers; returns their version and the servers that took them. Raises
        `ServerUnavailable` if none did within the deadline."""
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
            self.stats.retries += 1
            time.sleep(wait)
            self.stats.seconds += wait

    def adopt(self, received: Received) -> None:
        """Samples from now on with these weights, on these servers."""
        self._version, self._fresh = received

    def extend(self, stretches: Sequence[Stretch], sampling: Sampling) -> list[Rollout]:
        """Returns longer rollouts as `Engine.extend` does, after `adopt`. Raises `TaskError` for a prompt without room,
        `EngineError` for a rollout that has ended, and `ServerUnavailable` after the deadline."""
        asked = requests(self.model, stretches)

        def read(n: int, body: bytes) -> Rollout:
            with _strictly():
                (choice,) = json.loads(body)["choices"]
                places = choice["logprobs"]["content"]
                ids = [int(id) for id in choice["token_ids"]]
                log_probs = [float(place["logprob"]) for place in places]
                if ids != [place["token_id"] for place in places]:
                    raise ValueError("its log-probs are of other tokens")
                versions = [span["version"] for span in choice["weight_versions"]]
                finish = choice.get("finish_reason")
            return asked[n].rollout(ids, log_probs, versions, self._version, finish)

        bodies = [
            {"token_ids": request.token_ids, "sampling_params": request.sampling_params(sampling)} for request in asked
        ]
        return self.client.ask(GENERATE, bodies, read, self._fresh)

    def score(self, ids: Sequence[int]) -> dict[str, Float[Tensor, " N"]]:
        """Returns the log-probs at temperature 1 of all tokens but the first, by server. Raises `ServerUnavailable`."""
        body = {"token_ids": list(ids), "sampling_params": scoring_params()}

        def read(n: int, answer: bytes) -> Float[Tensor, " N"]:
            with _strictly():
                places = json.loads(answer)["prompt_logprobs"][1:]
                return torch.tensor(
                    [float(place[str(id)]["logprob"]) for place, id in zip(places, ids[1:], strict=True)]
                )

        return {server: self.client.ask(GENERATE, [body], read, [server])[0] for server in self._fresh}

    def sleep(self) -> None:
        """Does nothing: the servers use no memory of the trainer."""

    def _send(self, server: str, weights: Mapping[str, Tensor], version: str) -> Fault | None:
        """Sends weights to one server, once; returns the fault if it fails."""
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
            # The prefix cache holds keys and values of the previous weights.
            cleared = self.client.once(server, "POST", "/reset_prefix_cache")
            if not (isinstance(cleared, dict) and cleared.get("success")):
                raise Fault(FaultKind.MALFORMED, "it has not emptied its prefix cache: does it serve others too?")
        except Fault as fault:
            self._transfers.pop(server, None)
            self.stats.add(fault.kind, began)
            return fault
        return None

    def _send_by_nccl(self, server: str, weights: Mapping[str, Tensor]) -> None:
        try:
            if server not in self._transfers:
                workers = int(self.client.once(server, "GET", "/get_world_size")["world_size"])
                self._transfers[server] = trainer("nccl", _Control(self.client, server), server, workers)
            self._transfers[server].send(weights)
        except (RuntimeError, OSError) as error:  # from NCCL or its rendezvous
            raise Fault(FaultKind.DROPPED, f"the transfer of weights by NCCL failed ({error})") from error


class _Control:
    """Makes the calls of `Control` to one server over HTTP."""

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
    """Turns an error while an answer is read into a `Fault`."""
    try:
        yield
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise Fault(FaultKind.MALFORMED, f"its answer is cut off or not what was asked for ({error!r})") from error

"""Asks one server or several that hold the same model, and asks again where that can help.

It knows of requests, faults and waiting; what the answers are for, it does not know.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from hopd.errors import RecipeError, ServerUnavailable
from hopd.recipe import Servers
from hopd.remote.fault import Fault, FaultKind, Losses

LONGEST_WAIT = 30.0  # seconds between two attempts, unless the server asks for more

Answer = TypeVar("Answer")


@dataclass
class Client:
    """`what` is asked: "the teacher NAME", say. `losses` counts what went wrong. Raises `unavailable` when the deadline
    of a request has passed."""

    source: Servers
    what: str
    unavailable: type[ServerUnavailable] = ServerUnavailable
    losses: Losses = field(default_factory=Losses)
    _rested: dict[str, float] = field(default_factory=dict)  # when a server that failed may be asked again

    def __post_init__(self) -> None:
        self._rested = dict.fromkeys(self.source.servers, 0.0)

    def ask(
        self,
        path: str,
        requests: Sequence[dict[str, Any]],
        read: Callable[[int, bytes], Answer],
        servers: Sequence[str] = (),
    ) -> list[Answer]:
        """All requests, side by side, shared out over the servers or the named ones; `read` turns the answer to the
        n-th into what is wanted or raises `Fault`."""

        async def ask_all() -> list[Answer]:
            among = list(servers) or self.source.servers
            free = asyncio.Semaphore(self.source.concurrency * len(among))

            async def ask(n: int, request: dict[str, Any]) -> Answer:
                async with free:
                    return await self._until_answered(clients, among, n, path, request, read)

            async with _Clients(self) as clients:
                tasks = [asyncio.ensure_future(ask(n, request)) for n, request in enumerate(requests)]
                try:
                    return list(await asyncio.gather(*tasks))
                finally:  # one that failed for good, or an interruption, ends the others
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        return _run(ask_all())

    def once(self, server: str, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        """One server's answer to one request, as JSON; None where it is empty. Raises `Fault`."""

        async def ask() -> bytes:
            async with _Clients(self) as clients:
                return await self._send(clients[server], method, path, content)

        body = _run(ask())
        try:
            return httpx2.Response(200, content=body).json() if body.strip() else None
        except ValueError as error:
            raise Fault(FaultKind.MALFORMED, f"its answer to {path} is not JSON") from error

    def models(self, server: str) -> list[dict[str, Any]]:
        """What one server says that it serves. Raises `Fault`."""
        answer = self.once(server, "GET", "/v1/models")
        try:
            return list(answer["data"])
        except (KeyError, TypeError) as error:
            raise Fault(FaultKind.MALFORMED, "its /v1/models is not a list of models") from error

    async def _until_answered(
        self,
        clients: "_Clients",
        servers: Sequence[str],
        n: int,
        path: str,
        request: dict[str, Any],
        read: Callable[[int, bytes], Answer],
    ) -> Answer:
        """Exponential back-off with jitter, by server: where another one is well, it is asked at once."""
        deadline = time.monotonic() + self.source.deadline
        failed = 0
        while True:
            server, wait = self._next(servers, n + failed)
            began = time.monotonic()
            await asyncio.sleep(wait)
            if wait:
                self.losses.seconds += time.monotonic() - began
            began = time.monotonic()
            try:
                answer = read(n, await self._send(clients[server], "POST", path, request))
                self._rested[server] = 0.0
                return answer
            except Fault as fault:
                self.losses.add(fault.kind, began)
                failed += 1
                backoff = min(LONGEST_WAIT, self.source.backoff * 2.0 ** min(failed - 1, 30))
                rest = max(fault.retry_after, backoff * random.Random().uniform(0.5, 1.0))
                if fault.kind == FaultKind.REJECTED:  # to ask again would not help
                    rest = self.source.deadline + 1
                now = time.monotonic()
                self._rested[server] = now + rest
                if now + self._next(servers, n + failed)[1] > deadline:
                    raise self.unavailable(
                        f"{self.what}: {failed} attempts failed, with a deadline of {self.source.deadline:g} s; the "
                        f"last, at {server}: {fault}"
                    ) from None  # the causes hold requests, and these the key
                self.losses.retries += 1

    def _next(self, servers: Sequence[str], turn: int) -> tuple[str, float]:
        """The server to ask, in turn among those that are well, or else the first that may be asked again; and the
        seconds until then."""
        now = time.monotonic()
        well = [server for server in servers if self._rested[server] <= now]
        if well:
            return well[turn % len(well)], 0.0
        soonest = min(servers, key=lambda server: self._rested[server])
        return soonest, self._rested[soonest] - now

    async def _send(
        self, client: httpx2.AsyncClient, method: str, path: str, content: dict[str, Any] | None = None
    ) -> bytes:
        try:
            answer = await client.request(method, path, json=content)
        except httpx2.TimeoutException:
            raise Fault(FaultKind.TIMEOUT, f"no answer within {self.source.timeout:g} s") from None
        except httpx2.ConnectError as error:
            raise Fault(FaultKind.REFUSED, f"no connection ({error})") from None
        except httpx2.DecodingError as error:
            raise Fault(FaultKind.MALFORMED, f"its answer cannot be read ({type(error).__name__})") from None
        except httpx2.TransportError as error:
            raise Fault(FaultKind.DROPPED, f"the connection was lost ({type(error).__name__})") from None
        if answer.status_code == 200:
            return answer.content
        kind = FaultKind.REJECTED
        if answer.status_code == 429:
            kind = FaultKind.BUSY
        elif answer.status_code >= 500:
            kind = FaultKind.SERVER_ERROR
        said = self._without_key(" ".join(answer.text.split())[:300])
        raise Fault(kind, f"HTTP {answer.status_code}: {said}", _seconds(answer.headers.get("retry-after")))

    def key(self) -> str | None:
        """From the environment, at each use. Raises `RecipeError` if the variable is not set."""
        if self.source.api_key_env is None:
            return None
        key = os.environ.get(self.source.api_key_env, "").strip()
        if not key:
            raise RecipeError(
                f"{self.source.where}.api_key_env names the variable {self.source.api_key_env}, which is not set; "
                "export it, or leave api_key_env out"
            )
        if not key.isascii() or not key.isprintable():
            raise RecipeError(f"the variable {self.source.api_key_env} holds no key: a key is one line of plain text")
        return key

    def plain_servers(self) -> list[str]:
        """Those on other machines to which the key goes without TLS."""
        plain = [s for s in self.source.servers if s.startswith("http://") and not is_loopback(s)]
        return plain if self.key() else []

    def _without_key(self, text: str) -> str:
        key = self.key()
        return text.replace(key, "[key]") if key else text


class _Clients:
    """An HTTP client for each server, open for one round of requests. Certificates are verified."""

    def __init__(self, client: Client):
        self.client = client

    async def __aenter__(self) -> "_Clients":
        source, key = self.client.source, self.client.key()
        self._open = {
            server: httpx2.AsyncClient(
                base_url=server,
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout=source.timeout,
                trust_env=not is_loopback(server),  # no proxy of the environment stands before this machine itself
                limits=httpx2.Limits(max_connections=None),
            )
            for server in source.servers
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._open.values():
            await client.aclose()

    def __getitem__(self, server: str) -> httpx2.AsyncClient:
        return self._open[server]


def is_loopback(server: str) -> bool:
    return urlsplit(server).hostname in ("127.0.0.1", "::1", "localhost")


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After in seconds; a date, which servers of models do not send, counts as none."""
    return float(retry_after) if retry_after and retry_after.strip().isdigit() else 0.0


def _run(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Also where a loop is running already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, work).result()

"""Sends requests to one server, or to several with the same model, and retries where that can help.

It knows requests, faults and waits, but not what the answers are used for.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from hopd.errors import RecipeError, ServerUnavailable
from hopd.recipe import Servers
from hopd.remote.backoff import Backoff
from hopd.remote.fault import Fault, FaultKind, RequestStats

Answer = TypeVar("Answer")


@dataclass
class Client:
    """Shares requests out over the servers of `source`. `what` begins the message of an error, such as "the teacher
    NAME has not scored"; the error, after a request's deadline, is an `unavailable`. `stats` counts faults and
    retries."""

    source: Servers
    what: str
    unavailable: type[ServerUnavailable] = ServerUnavailable
    stats: RequestStats = field(default_factory=RequestStats)
    _retry_at: dict[str, float] = field(default_factory=dict)  # when a server that failed may be asked again

    def __post_init__(self) -> None:
        self._retry_at = dict.fromkeys(self.source.servers, 0.0)

    def ask(
        self,
        path: str,
        requests: Sequence[dict[str, Any]],
        read: Callable[[int, bytes], Answer],
        servers: Sequence[str] = (),
    ) -> list[Answer]:
        """Sends all requests concurrently to `servers`, by default to all of them, and returns the answers in order.
        `read` turns the n-th answer's body into a value, or raises `Fault`."""

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
                finally:  # a request that failed for good, or an interruption, cancels the others
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        return _run(ask_all())

    def once(self, server: str, method: str, path: str, content: dict[str, Any] | None = None) -> Any:
        """Sends one request to one server and returns the JSON, or None for an empty answer. Raises `Fault`."""

        async def ask() -> bytes:
            async with _Clients(self) as clients:
                return await self._send(clients[server], method, path, content)

        body = _run(ask())
        try:
            return httpx.Response(200, content=body).json() if body.strip() else None
        except ValueError as error:
            raise Fault(FaultKind.MALFORMED, f"its answer to {path} is not JSON") from error

    def models(self, server: str) -> list[dict[str, Any]]:
        """Returns the entries of one server's list of models. Raises `Fault`."""
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
        """Sends a request until a server answers. A fault delays its own server only: another one is asked at once."""
        backoff = Backoff(self.source.backoff, self.source.deadline)
        while True:
            server, wait = self._next(servers, n + backoff.failed)
            began = time.monotonic()
            await asyncio.sleep(wait)
            if wait:
                self.stats.seconds += time.monotonic() - began
            began = time.monotonic()
            try:
                answer = read(n, await self._send(clients[server], "POST", path, request))
                self._retry_at[server] = 0.0
                return answer
            except Fault as fault:
                self.stats.add(fault.kind, began)
                wait = backoff.fail(fault.retry_after)
                if fault.kind == FaultKind.REJECTED:  # a retry would not help
                    wait = self.source.deadline + 1
                self._retry_at[server] = time.monotonic() + wait
                if not backoff.allows(self._next(servers, n + backoff.failed)[1]):
                    raise self.unavailable(
                        f"{self.what}: {backoff.failed} attempts failed, with a deadline of "
                        f"{self.source.deadline:g} s; the last, at {server}: {fault}"
                    ) from None  # the cause would show the request, and with it the key
                self.stats.retries += 1

    def _next(self, servers: Sequence[str], turn: int) -> tuple[str, float]:
        """Returns the server to ask and the seconds until then: in turn among those that may be asked now, or else the
        first that may be asked again."""
        now = time.monotonic()
        well = [server for server in servers if self._retry_at[server] <= now]
        if well:
            return well[turn % len(well)], 0.0
        soonest = min(servers, key=lambda server: self._retry_at[server])
        return soonest, self._retry_at[soonest] - now

    async def _send(
        self, client: httpx.AsyncClient, method: str, path: str, content: dict[str, Any] | None = None
    ) -> bytes:
        try:
            answer = await client.request(method, path, json=content)
        except httpx.TimeoutException:
            raise Fault(FaultKind.TIMEOUT, f"no answer within {self.source.timeout:g} s") from None
        except httpx.ConnectError as error:
            raise Fault(FaultKind.REFUSED, f"no connection ({error})") from None
        except httpx.DecodingError as error:
            raise Fault(FaultKind.MALFORMED, f"its answer cannot be read ({type(error).__name__})") from None
        except httpx.TransportError as error:
            raise Fault(FaultKind.DROPPED, f"the connection was lost ({type(error).__name__})") from None
        if answer.status_code == 200:
            return answer.content
        kind = FaultKind.REJECTED
        if answer.status_code == 429:
            kind = FaultKind.BUSY
        elif answer.status_code >= 500:
            kind = FaultKind.SERVER_ERROR
        reason = self._without_key(" ".join(answer.text.split())[:300])
        raise Fault(kind, f"HTTP {answer.status_code}: {reason}", _seconds(answer.headers.get("retry-after")))

    def key(self) -> str | None:
        """Reads the key from the environment, anew at each use. Raises `RecipeError` if the variable is not set."""
        if self.source.api_key_env is None:
            return None
        key = os.environ.get(self.source.api_key_env, "").strip()
        if not key:
            raise RecipeError(
                f"{self.source.where}.api_key_env names the variable {self.source.api_key_env}, which is not set; "
                "export it, or leave api_key_env out"
            )
        if not key.isascii() or not key.isprintable():
            raise RecipeError(
                f"the variable {self.source.api_key_env} does not hold a key: a key is one line of plain text"
            )
        return key

    def plain_servers(self) -> list[str]:
        """Returns the servers on other machines that get the key without TLS."""
        plain = [s for s in self.source.servers if s.startswith("http://") and not is_loopback(s)]
        return plain if self.key() else []

    def _without_key(self, text: str) -> str:
        key = self.key()
        return text.replace(key, "[key]") if key else text


class _Clients:
    """Holds an HTTP client for each server, open for one round of requests. Certificates are verified."""

    def __init__(self, client: Client):
        self.client = client

    async def __aenter__(self) -> "_Clients":
        source, key = self.client.source, self.client.key()
        self._open = {
            server: httpx.AsyncClient(
                base_url=server,
                headers={"authorization": f"Bearer {key}"} if key else {},
                timeout=source.timeout,
                trust_env=not is_loopback(server),  # a proxy from the environment is not for this machine itself
                limits=httpx.Limits(max_connections=None),
            )
            for server in source.servers
        }
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._open.values():
            await client.aclose()

    def __getitem__(self, server: str) -> httpx.AsyncClient:
        return self._open[server]


def is_loopback(server: str) -> bool:
    """Tells whether an address names this machine."""
    return urlsplit(server).hostname in ("127.0.0.1", "::1", "localhost")


def _seconds(retry_after: str | None) -> float:
    """Reads a Retry-After in seconds; a date, which servers of models do not send, counts as 0."""
    return float(retry_after) if retry_after and retry_after.strip().isdigit() else 0.0


def _run(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Runs a coroutine to its end, also inside a running loop, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as other:
        return other.submit(asyncio.run, work).result()

"""Defines what remote teachers and remote engines share: addresses, key and times."""

from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from hopd.errors import RecipeError, shown
from hopd.recipe.section import Section


class Servers(Section):
    """Names one vLLM server, or several with the same model. Times are in seconds.

    At most `concurrency` requests are in flight to each server. A failed request is retried until `deadline`, first
    after about `backoff`, then after twice as long, and so on. `api_key_env` is the environment variable with the key.
    """

    where: ClassVar[str]  # the section's place in a recipe

    server: str | list[str]
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout: float = Field(120.0, gt=0)
    deadline: float = Field(300.0, ge=0)
    backoff: float = Field(0.5, gt=0)
    concurrency: int = Field(4, ge=1)

    @property
    def servers(self) -> list[str]:
        """Returns the base addresses, without a trailing slash or /v1."""
        given = [self.server] if isinstance(self.server, str) else self.server
        return [server.rstrip("/").removesuffix("/v1") for server in given]

    @model_validator(mode="after")
    def _addresses(self) -> Self:
        where = f"{self.where}.server"
        if not self.servers:
            raise RecipeError(f"{where} is an empty list; write server: http://127.0.0.1:8000")
        for server in self.servers:
            parts = urlsplit(server)
            if parts.username or parts.password:
                raise RecipeError(f"{where} must not contain a user or password; write api_key_env: VARIABLE")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise RecipeError(f"{where} must be an address such as http://127.0.0.1:8000, got {shown(server)}")
        if len(set(self.servers)) < len(self.servers):
            raise RecipeError(f"{where} names the same address twice")
        return self

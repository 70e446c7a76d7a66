"""Where the models of a recipe come from, a directory or hub, the student's own base, servers; and who decodes."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from hopd.errors import RecipeError, nearest


class Section(BaseModel):
    """A part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSource(Section):
    """A directory, a hub name, or `package:NAME/PATH`; `layers` keeps those decoder layers only."""

    model: str
    layers: list[int] | None = None
    trust_remote_code: bool = False


class AdaptersOff(Section):
    """The student with its adapters switched off: no second copy of the weights."""

    adapter_disabled: Literal[True]


class Servers(Section):
    """One vLLM server, or several that hold the same model. Times are in seconds.

    `concurrency` requests go to a server at once; one that fails is sent again until `deadline`, first after about
    `backoff`, then after twice as long, and so on.
    """

    where: ClassVar[str]  # in a recipe

    server: str | list[str]
    api_key_env: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout: float = Field(120.0, gt=0)
    deadline: float = Field(300.0, ge=0)
    backoff: float = Field(0.5, gt=0)
    concurrency: int = Field(4, ge=1)

    @property
    def servers(self) -> list[str]:
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
                raise RecipeError(f"{where} must hold no user or password; write api_key_env: VARIABLE")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
                raise RecipeError(f"{where} is an address such as http://127.0.0.1:8000, got {server!r}")
        if len(set(self.servers)) < len(self.servers):
            raise RecipeError(f"{where} names the same address twice")
        return self


class ServerSource(Servers):
    """A teacher that servers hold. A request takes up to `sequences` sequences."""

    where: ClassVar[str] = "teacher"

    model: str
    sequences: int = Field(16, ge=1)


# The tag of each kind; "<" keeps tags apart from the names of teachers.
TEACHER_KINDS: dict[str, type[Section]] = {"<model>": ModelSource, "<base>": AdaptersOff, "<server>": ServerSource}


def _kind(source: Any) -> str:
    """Each kind has a key of its own."""
    keys = source if isinstance(source, Mapping) else getattr(type(source), "model_fields", ())
    return "<server>" if "server" in keys else "<base>" if "adapter_disabled" in keys else "<model>"


TeacherSource = Annotated[
    Annotated[ModelSource, Tag("<model>")]
    | Annotated[AdaptersOff, Tag("<base>")]
    | Annotated[ServerSource, Tag("<server>")],
    Discriminator(_kind),
]


class LoraSection(Section):
    """Adapters of rank `rank`, scaled by alpha / rank, beside all linear layers or those that are named."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"


class NativeDecoding(Section):
    """By hopd's own engine, with the student's weights themselves."""

    kind: Literal["native"] = "native"


class VllmDecoding(Section):
    """By a vLLM beside the trainer. `memory` is its share of the device's memory; with `sleep` it gives it back while
    the student is trained (GPUs only)."""

    kind: Literal["vllm"]
    memory: float = Field(0.4, gt=0, lt=1)
    sleep: bool = True
    eager: bool = False


class VllmServers(Servers):
    """By `vllm serve`. Weights go there by `nccl`, or as a `file` in a directory that trainer and servers both see."""

    where: ClassVar[str] = "rollout.engine"

    kind: Literal["vllm_server"]
    weights: Literal["nccl", "file"]
    directory: str | None = None
    timeout: float = Field(1800.0, gt=0)
    concurrency: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.weights == "file") != (self.directory is not None):
            raise RecipeError(
                "rollout.engine: weights: file needs a directory that trainer and servers see, and weights: nccl needs "
                "none"
            )
        return self


ENGINE_KINDS: dict[str, type[Section]] = {
    "<native>": NativeDecoding,
    "<vllm>": VllmDecoding,
    "<vllm_server>": VllmServers,
}


def _engine_kind(source: Any) -> str:
    kind = source.get("kind") if isinstance(source, Mapping) else getattr(source, "kind", None)
    if f"<{kind}>" not in ENGINE_KINDS:
        known = [tag.strip("<>") for tag in ENGINE_KINDS]
        raise RecipeError(f"rollout.engine.kind is one of {', '.join(known)}, got {kind!r}{nearest(str(kind), known)}")
    return f"<{kind}>"


Decoding = Annotated[
    Annotated[NativeDecoding, Tag("<native>")]
    | Annotated[VllmDecoding, Tag("<vllm>")]
    | Annotated[VllmServers, Tag("<vllm_server>")],
    Discriminator(_engine_kind),
]

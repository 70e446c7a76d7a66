"""Who decodes a recipe's rollouts: hopd itself, a vLLM in the same process, or vLLM servers."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from hopd.errors import RecipeError
from hopd.recipe.section import Section, kind_named_by
from hopd.recipe.servers import Servers


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


Decoding = Annotated[
    Annotated[NativeDecoding, Tag("<kind native>")]
    | Annotated[VllmDecoding, Tag("<kind vllm>")]
    | Annotated[VllmServers, Tag("<kind vllm_server>")],
    kind_named_by("kind", ("native", "vllm", "vllm_server"), plugins=False),
]

"""Describes the engine that decodes a recipe's rollouts: hopd itself, a colocated vLLM, or vLLM servers."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Tag, model_validator

from hopd.errors import RecipeError
from hopd.recipe.section import Section, kind_named_by
from hopd.recipe.servers import Servers


class NativeDecoding(Section):
    """Decodes with hopd's own engine, from the student's weights themselves.

    `keys` says what becomes of a rollout's keys and values between two steps, where rollouts continue: they are `kept`,
    in memory and in checkpoints, or computed again (`refreshed`), which costs a pass over what the rollout has.
    """

    kind: Literal["native"] = "native"
    keys: Literal["kept", "refreshed"] = "kept"


class VllmDecoding(Section):
    """Decodes with a colocated vLLM.

    `memory` is vLLM's fraction of the device's memory. With `sleep`, it releases that memory while the student is
    trained (GPUs only). With `eager`, it uses neither compilation nor CUDA graphs.
    """

    kind: Literal["vllm"]
    memory: float = Field(0.4, gt=0, lt=1)
    sleep: bool = True
    eager: bool = False


class VllmServers(Servers):
    """Decodes with `vllm serve`. Weights are sent by `nccl`, or as a `file` in a directory that trainer and servers
    share."""

    where: ClassVar[str] = "rollout.engine"

    kind: Literal["vllm_server"]
    weights: Literal["nccl", "file"]
    directory: str | None = None
    timeout: float = Field(1800.0, gt=0)
    concurrency: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _directory_for_file(self) -> Self:
        if (self.weights == "file") != (self.directory is not None):
            raise RecipeError(
                "rollout.engine: weights: file needs a directory that trainer and servers share, and weights: nccl "
                "takes none"
            )
        return self


Decoding = Annotated[
    Annotated[NativeDecoding, Tag("<kind native>")]
    | Annotated[VllmDecoding, Tag("<kind vllm>")]
    | Annotated[VllmServers, Tag("<kind vllm_server>")],
    kind_named_by("kind", ("native", "vllm", "vllm_server"), plugins=False),
]

"""Describes what decodes a recipe's rollouts, hopd itself, a colocated vLLM, or vLLM servers, and what ends them."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, Tag, model_validator

from hopd.errors import RecipeError, shown
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


def _check_ends(value: Any) -> Any:
    """Raises `RecipeError` unless `value` lists ids and texts. A list of Python or YAML is all that is taken."""
    if not isinstance(value, list | tuple):
        raise RecipeError(f"rollout.stop must be a list such as [2, <|im_end|>]; write stop: [{shown(value)}]")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise RecipeError(f"rollout.stop takes ids, tokens and texts, got {shown(item)}; write texts in quotes")
        if item == "":
            raise RecipeError("rollout.stop holds an empty text, which every answer contains; remove it")
        if isinstance(item, int) and not 0 <= item < 2**31:
            raise RecipeError(f"rollout.stop: an id must be from 0 to {2**31 - 1}, got {shown(item)}")
    return list(value)


Ends = Annotated[list[int | str], BeforeValidator(_check_ends)]

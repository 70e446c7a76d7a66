"""Defines the sections of a recipe that hold numbers: rollouts, training, evaluation, checkpoints."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hopd.errors import RecipeError
from hopd.recipe.decoding import Decoding, Ends, NativeDecoding
from hopd.recipe.off_policy import OffPolicySection
from hopd.recipe.sampling import Sampling
from hopd.recipe.section import Section
from hopd.recipe.tasks import TaskSource


class RolloutSection(Section):
    """Sets what a step samples: `samples` rollouts of each of `prompts` prompts.

    `full_tokens` is T, and `prompt_tokens` the longest prompt, in tokens; `rows` is the number of concurrent sequences.
    `off_policy` takes a share of the rollouts from the task's reference answers instead of the student.
    `stop` ends rollouts, of the evaluation too, at more than the model's own ends: at ids, tokens, or texts.
    `mismatch_alarm` is the difference between the engine's and the learner's log-probs, in nats per token, above which
    the run warns; by default, what rounding explains in the training's precision.
    """

    engine: Decoding = NativeDecoding()
    prompts: int = Field(ge=1)
    samples: int = Field(1, ge=1)
    off_policy: OffPolicySection | None = None
    full_tokens: int = Field(ge=1)
    prompt_tokens: int = Field(1024, ge=1)
    too_long: Literal["drop", "error"] = "drop"
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    stop: Ends = []
    rows: int = Field(64, ge=1)
    mismatch_alarm: float | None = Field(None, gt=0)

    @property
    def sampling(self) -> Sampling:
        """Returns the settings that tokens are sampled with."""
        return Sampling(self.temperature, self.top_p, self.top_k)

    @property
    def per_step(self) -> int:
        """Returns the number of rollouts in a step, unless the horizon says another."""
        return self.prompts * self.samples

    @property
    def sampled_share(self) -> float:
        """Returns the share of rollouts that the student samples; the others are reference answers."""
        return 1 - self.off_policy.share if self.off_policy else 1.0

    @model_validator(mode="after")
    def _untempered_log_probs(self) -> "RolloutSection":
        cut = self.top_p < 1 or self.top_k > 0
        if self.engine.kind != "native" and cut and self.temperature != 1:
            raise RecipeError(
                "rollout: vLLM returns log-probs before the temperature or after top_p and top_k, and training needs "
                "those in between; write temperature: 1, or no top_p and top_k, or engine: {kind: native}"
            )
        return self


_Beta = Annotated[float, Field(ge=0, lt=1)]
DECAY = 0.2  # the share of the steps in which `wsd` lowers the rate, unless the recipe says otherwise


class TrainingSection(Section):
    """Sets the length of a run, `steps` or `epochs`, and how the student is updated.

    An optimiser step uses `mini_batch` prompts (by default, all prompts of the rollout). `tokens_per_batch` limits one
    micro-batch, padding included. `schedule: wsd` (warm-up, stable, decay) keeps the rate until the last `decay` of the
    steps, a fraction, and lowers it to zero there. With `ema`, the decay at each optimiser step, the weights are
    averaged: evaluations use the average, and checkpoints hold it beside the weights.
    """

    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    mini_batch: int | None = Field(None, ge=1)
    learning_rate: float = Field(gt=0)
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    decay: float | None = Field(None, gt=0, le=1)
    ema: float | None = Field(None, gt=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["fp32", "bf16"] = "fp32"
    tokens_per_batch: int = Field(8192, ge=1)
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    attention: Literal["auto", "sdpa", "matmul"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _decay_of_wsd(cls, content: Any) -> Any:
        """Writes the default out where it applies, and nowhere else."""
        if isinstance(content, Mapping) and content.get("schedule") == "wsd" and content.get("decay") is None:
            return {**content, "decay": DECAY}
        return content

    @model_validator(mode="after")
    def _decay_has_its_schedule(self) -> "TrainingSection":
        if self.decay is not None and self.schedule != "wsd":
            raise RecipeError(
                f"training.decay belongs to schedule: wsd, and the schedule is {self.schedule}; remove decay, or write "
                "schedule: wsd"
            )
        return self

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> "TrainingSection":
        if (self.steps is None) == (self.epochs is None):
            raise RecipeError("training needs either steps or epochs: write steps: 200, or epochs: 2")
        return self


class EvaluationSection(Section):
    """Evaluates on `task`, always to the full length, every `every` steps or `every_flops` FLOPs of training, and
    at the end. `rows` is the number of concurrent sequences."""

    task: TaskSource
    every: int | None = Field(None, ge=1)
    every_flops: float | None = Field(None, gt=0)
    at_start: bool = True
    measure: Literal["accuracy", "divergence"] = "accuracy"
    samples: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    rows: int = Field(128, ge=1)
    seed: int = 0

    @property
    def sampling(self) -> Sampling:
        """Returns the settings that tokens are sampled with."""
        return Sampling(self.temperature, self.top_p, self.top_k)

    @model_validator(mode="after")
    def _one_interval(self) -> "EvaluationSection":
        if self.every is not None and self.every_flops is not None:
            raise RecipeError("evaluation takes every (steps) or every_flops, not both")
        if self.temperature == 0 and self.samples > 1:
            raise RecipeError("evaluation at temperature 0 is greedy: more than one sample would repeat the first")
        return self


class CheckpointSection(Section):
    """Saves every `every` steps and at the end. Keeps the last `keep_last` checkpoints and, with `keep_best`, the one
    with the best evaluation."""

    every: int = Field(50, ge=1)
    keep_last: int = Field(2, ge=1)
    keep_best: bool = False

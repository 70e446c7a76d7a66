"""Horizon control inside TRL's `DistillationTrainer`, for `generate()` and for vLLM.

    trainer = DistillationTrainer(...)
    HorizonCallback(controller).attach(trainer)
    trainer.train()

TRL samples once an optimiser step, in the first of the step's micro-batches, and then reads how far a completion may
go from its generation config and from its vLLM engine. The callback writes both there before the step and puts the
full length back after it. What it does not know: the divergence by position, which stays inside TRL's loss.
"""

import json
from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from trl import DistillationConfig, DistillationTrainer

from hopd.errors import CheckpointError, RecipeError
from hopd.horizon import Controller, Decision, Evidence

_LIMITS = ("max_new_tokens", "max_length", "max_tokens")


class HorizonCallback(TrainerCallback, ExportableState):
    """Asks `controller` before every optimiser step, with the step counted from 0, how far its completions may go.

    Evaluation always runs to the full length, which is TRL's `max_completion_length`. The horizon is in TRL's logs as
    `horizon` (a mean over the logged steps, as all of its metrics are), and every decision with its reason in
    `horizon.jsonl` in the output directory. The controller's state is in each checkpoint's `trainer_state.json` and is
    taken up again by `train(resume_from_checkpoint=...)`. After a step the controller observes how many completions
    there were, how many of them stopped, and their mean length, over all processes; by position it observes nothing.
    """

    def __init__(self, controller: Controller):
        self.controller = controller
        self.trainer: DistillationTrainer | None = None
        self.decision: Decision | None = None

    def attach(self, trainer: DistillationTrainer) -> None:
        """Gives `trainer` this callback. Raises `RecipeError` where its horizon could not be controlled."""
        if not isinstance(trainer, DistillationTrainer):
            raise RecipeError(f"HorizonCallback controls TRL's DistillationTrainer, not {type(trainer).__name__}")
        options, full_tokens = cast(DistillationConfig, trainer.args), self.controller.full_tokens
        if options.max_completion_length != full_tokens:
            raise RecipeError(
                f"the controller's full length is {full_tokens} tokens, TRL's max_completion_length is "
                f"{options.max_completion_length}; they are the same thing, so write the same number"
            )
        if limits := [name for name in _LIMITS if name in (options.generation_kwargs or {})]:
            raise RecipeError(f"generation_kwargs sets {limits[0]}, which overrides the horizon; leave it out")
        if options.restore_callback_states_from_checkpoint:
            raise RecipeError(
                "restore_callback_states_from_checkpoint would make a new HorizonCallback, without its controller; "
                "leave it off: this one restores its controller by itself"
            )
        self.trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        evaluation_loop = trainer.evaluation_loop

        def to_the_full_length(*args: Any, **settings: Any) -> Any:
            self._limit(full_tokens)  # a step that was interrupted did not get to put it back
            return evaluation_loop(*args, **settings)

        trainer.evaluation_loop = to_the_full_length  # type: ignore[method-assign]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        if self.trainer is None:
            raise RecipeError("HorizonCallback knows no trainer; write callback.attach(trainer) before trainer.train()")
        if state.global_step > 0:
            states = cast(dict[str, Any], state.stateful_callbacks)
            saved = states.get(type(self).__name__)
            if saved is None:
                raise CheckpointError(
                    f"the checkpoint of step {state.global_step} was saved without HorizonCallback, so what its "
                    "controller knew then is lost; begin anew, or go on without the callback"
                )
            self.controller.load_state_dict(saved["attributes"]["controller"])
        if state.is_world_process_zero:
            _lines(args).parent.mkdir(parents=True, exist_ok=True)
            _rewind(_lines(args), state.global_step)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        self.decision = self.controller.decide(state.global_step)
        self._limit(self.decision.tokens)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        assert self.trainer is not None
        assert self.decision is not None
        self._limit(self.controller.full_tokens)
        metrics = self.trainer._metrics["train"]  # over all processes; emptied when TRL has logged them
        metrics["horizon"].append(self.decision.tokens)
        rollouts = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.controller.observe(
            Evidence(
                step=state.global_step - 1,
                horizon=self.decision.tokens,
                rollouts=rollouts,
                stopped=round(rollouts * (1 - metrics["completions/clipped_ratio"][-1])),
                mean_length=metrics["completions/mean_length"][-1],
                edges=(),
                reverse_kl=(),
                counts=(),
            )
        )
        if state.is_world_process_zero:
            line = {"step": state.global_step, "tokens": self.decision.tokens, "reason": self.decision.reason}
            with _lines(args).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def state(self) -> dict[str, Any]:
        """What transformers keeps in `trainer_state.json`."""
        return {"args": {}, "attributes": {"controller": self.controller.state_dict()}}

    def _limit(self, tokens: int) -> None:
        trainer = self.trainer
        assert trainer is not None
        trainer.generation_config.max_new_tokens = tokens  # generate()
        trainer.generation_kwargs["max_new_tokens"] = tokens  # lent to the model's own config while it generates
        trainer.max_completion_length = tokens  # all turns of a completion with tools
        if trainer.use_vllm:
            trainer.vllm_generation.max_completion_length = tokens


def _lines(args: TrainingArguments) -> Path:
    return Path(str(args.output_dir)) / "horizon.jsonl"


def _rewind(path: Path, step: int) -> None:
    """Forgets the decisions of steps that will be done again, and a line that was cut off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")

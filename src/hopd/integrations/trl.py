"""Controls the horizon of TRL's `DistillationTrainer`, with `generate()` and with vLLM.

    trainer = DistillationTrainer(...)
    HorizonCallback(controller).attach(trainer)
    trainer.train()

TRL samples once per optimiser step, in the first of the step's micro-batches, and reads the length of a completion
from its generation config and from its vLLM engine. The callback sets both before the step and restores the full length
after it. It does not know the divergence by position, which stays inside TRL's loss.
"""

from pathlib import Path
from typing import Any, cast

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from trl import DistillationConfig, DistillationTrainer  # type: ignore[attr-defined, unused-ignore]

from hopd.errors import CheckpointError, RecipeError
from hopd.horizon import Controller, Decision, Evidence
from hopd.run.files import append_line, change_lines

_LIMITS = ("max_new_tokens", "max_length", "max_tokens")


class HorizonCallback(TrainerCallback, ExportableState):
    """Lets `controller` decide the horizon of every optimiser step, with steps counted from 0.

    Evaluation always runs to the full length, which is TRL's `max_completion_length`. TRL logs the horizon as `horizon`
    (a mean over the logged steps, like all of its metrics), and `horizon.jsonl` in the output directory holds every
    decision with its reason. Each checkpoint's `trainer_state.json` holds the controller's state, which
    `train(resume_from_checkpoint=...)` restores. After a step, the controller observes the number of completions, how
    many of them stopped, and their mean length, over all processes, but nothing by position.
    """

    def __init__(self, controller: Controller):
        self.controller = controller
        self.trainer: DistillationTrainer | None = None
        self.decision: Decision | None = None

    def attach(self, trainer: DistillationTrainer) -> None:
        """Adds this callback to `trainer`. Raises `RecipeError` if its horizon could not be controlled."""
        if not isinstance(trainer, DistillationTrainer):
            raise RecipeError(f"HorizonCallback controls TRL's DistillationTrainer, not {type(trainer).__name__}")
        options, full_tokens = cast(DistillationConfig, trainer.args), self.controller.full_tokens
        if options.max_completion_length != full_tokens:
            raise RecipeError(
                f"the controller's full length is {full_tokens} tokens, TRL's max_completion_length is "
                f"{options.max_completion_length}; both mean the same length, so write the same number"
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
            self._limit(full_tokens)  # an interrupted step has not restored it
            return evaluation_loop(*args, **settings)

        trainer.evaluation_loop = to_the_full_length  # type: ignore[method-assign]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Restores the controller and horizon.jsonl of a resumed run."""
        if self.trainer is None:
            raise RecipeError("HorizonCallback has no trainer; write callback.attach(trainer) before trainer.train()")
        if state.global_step > 0:
            states = cast(dict[str, Any], state.stateful_callbacks)
            saved = states.get(type(self).__name__)
            if saved is None:
                raise CheckpointError(
                    f"the checkpoint of step {state.global_step} was saved without HorizonCallback, so its "
                    "controller's state is lost; start a new run, or continue without the callback"
                )
            self.controller.load_state_dict(saved["attributes"]["controller"])
        if state.is_world_process_zero:
            _lines(args).parent.mkdir(parents=True, exist_ok=True)
            # Decisions of steps that will run again, and an incomplete line, are removed.
            change_lines(_lines(args), lambda line: line if line["step"] <= state.global_step else None)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Decides the horizon of the step and limits its completions."""
        self.decision = self.controller.decide(state.global_step)
        if not self.decision.only_cuts:
            raise RecipeError(
                f"TRL can cut all rollouts of a step and nothing else ({self.decision.reason}); continued and whole "
                "rollouts need hopd's own loop: hopd train"
            )
        self._limit(self.decision.tokens)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Restores the full length, lets the controller observe the step, and records the decision."""
        assert self.trainer is not None
        assert self.decision is not None
        self._limit(self.controller.full_tokens)
        metrics = self.trainer._metrics["train"]  # over all processes; TRL empties it at each log
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
            append_line(_lines(args), line)

    def state(self) -> dict[str, Any]:
        """Returns what transformers saves in `trainer_state.json`."""
        return {"args": {}, "attributes": {"controller": self.controller.state_dict()}}

    def _limit(self, tokens: int) -> None:
        """Sets the length of completions in every place where TRL reads it."""
        trainer = self.trainer
        assert trainer is not None
        trainer.generation_config.max_new_tokens = tokens  # generate()
        trainer.generation_kwargs["max_new_tokens"] = tokens  # overrides the model's own config during generation
        trainer.max_completion_length = tokens  # all turns of a completion with tools
        if trainer.use_vllm:
            trainer.vllm_generation.max_completion_length = tokens


def _lines(args: TrainingArguments) -> Path:
    return Path(str(args.output_dir)) / "horizon.jsonl"

"""Controls the horizon of verl's on-policy distillation, through two of its extension points.

verl calls an agent loop manager, which the configuration may name, to roll out a batch; the batch holds the global step
and whether it is for validation. The manager here adds two columns to every *training* prompt: the step's horizon, and
the name of an agent loop that passes the horizon to the server as `max_tokens`. A validation batch stays unchanged, so
verl validates to its own full length. The teacher scores only what was sampled.

    actor_rollout_ref.model.external_lib=hopd.integrations.verl
    +actor_rollout_ref.rollout.agent.agent_loop_manager_class=hopd.integrations.verl_queue.HorizonManager
    +actor_rollout_ref.rollout.custom.horizon.controller=progressive
    +actor_rollout_ref.rollout.custom.horizon.start=512
    +actor_rollout_ref.rollout.custom.horizon.increment=9

`verl.trainer.main_ppo` takes the manager of `verl_queue`; `verl.trainer.main_ppo_v0` takes the one in this file.
"""

import logging
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.ray_utils import auto_await

from hopd.errors import RecipeError
from hopd.horizon import Decision, build

AGENT = "horizon_agent"
REPLACED = "single_turn_agent"  # verl's own loop, which AGENT extends

logger = logging.getLogger(__name__)


@register(AGENT)
class HorizonAgentLoop(SingleTurnAgentLoop):  # type: ignore[misc, unused-ignore]
    """Runs verl's single-turn loop with at most `horizon` response tokens."""

    async def run(self, sampling_params: dict[str, Any], *, horizon: int, **sample: Any) -> AgentLoopOutput:
        """Rolls out one prompt to at most `horizon` tokens."""
        return await super().run(sampling_params | {"max_tokens": int(horizon)}, **sample)


class Schedule:
    """Decides the horizon of a verl run by global step, from `rollout.custom.horizon`; T is `rollout.response_length`.

    A decision depends on the step alone, and verl restores the step, so a resumed run has the same horizons. Raises
    `RecipeError` if the configuration would not apply the horizon.
    """

    def __init__(self, config: DictConfig):
        rollout, model = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
        spec = (rollout.get("custom") or {}).get("horizon")
        if spec is None:
            raise RecipeError(
                "no horizon is configured; add +actor_rollout_ref.rollout.custom.horizon.controller=full, or another"
            )
        libraries = [model.external_lib] if isinstance(model.external_lib, str) else list(model.external_lib or [])
        if __name__ not in libraries:
            raise RecipeError(
                f"verl's workers do not know the agent loop; add actor_rollout_ref.model.external_lib={__name__}"
            )
        self._accept(rollout.agent.default_agent_loop)
        self.controller = build(OmegaConf.to_container(spec, resolve=True), rollout.response_length)
        if self.controller.state_dict():
            raise RecipeError(
                f"horizon '{spec.controller}' has a state, which verl does not save; use a schedule such as progressive"
            )
        self._last: Decision | None = None

    def decide(self, global_step: int, agents: set[str]) -> int:
        """Returns the horizon of `global_step`, which verl counts from 1; `agents` are the prompts' loops."""
        for agent in agents:
            self._accept(agent)
        decision = self.controller.decide(global_step - 1)
        if not decision.only_cuts:
            raise RecipeError(
                f"verl can cut all rollouts of a step and nothing else ({decision.reason}); continued and whole "
                "rollouts need hopd's own loop: hopd train"
            )
        if decision != self._last:
            logger.warning("horizon of step %d: %s", global_step, decision.reason)  # verl shows warnings only
        self._last = decision
        return decision.tokens

    @staticmethod
    def _accept(agent: str) -> None:
        if agent not in (REPLACED, AGENT):
            raise RecipeError(f"hopd limits the rollouts of {REPLACED} only, and {agent!r} would replace it")


class HorizonManager(AgentLoopManager):  # type: ignore[misc, unused-ignore]
    """Serves trainers that roll out a `DataProto` at a time: `verl.trainer.main_ppo_v0`."""

    def __init__(self, config: DictConfig, *clients: Any, **settings: Any):
        super().__init__(config, *clients, **settings)
        self.schedule = Schedule(config)

    # As in verl, trainers call it with and without await.
    @auto_await  # type: ignore[untyped-decorator, unused-ignore]
    async def generate_sequences(self, prompts: DataProto) -> DataProto:
        """Rolls out a batch, to the step's horizon if it is for training."""
        if not prompts.meta_info.get("validate", False):
            columns = prompts.non_tensor_batch
            horizon = self.schedule.decide(prompts.meta_info["global_steps"], set(columns.get("agent_name", ())))
            columns["agent_name"] = np.full(len(prompts), AGENT, dtype=object)
            columns["horizon"] = np.full(len(prompts), horizon)
        return await super().generate_sequences(prompts)

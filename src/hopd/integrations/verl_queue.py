"""Provides the manager of `hopd.integrations.verl` for trainers that use verl's TransferQueue: `main_ppo`.

It is a separate file because it imports `transfer_queue`, which verl does not install by itself.
"""

from typing import Any

from omegaconf import DictConfig
from tensordict import TensorDict
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ
from verl.utils.tensordict_utils import assign_non_tensor_data, get

from hopd.integrations.verl import AGENT, Schedule


class HorizonManager(AgentLoopManagerTQ):  # type: ignore[misc, unused-ignore]
    """Sets the horizon when verl submits a prompt, in asynchronous modes too."""

    def __init__(self, config: DictConfig, *clients: Any, **settings: Any):
        super().__init__(config, *clients, **settings)
        self.schedule = Schedule(config)

    def generate_sequences(self, prompts: TensorDict) -> None:
        """Submits a batch, with the step's horizon if it is for training."""
        if not get(prompts, "validate", False):
            named = get(prompts, "agent_name", [])  # one name for all prompts, or one for each
            agents = {named} if isinstance(named, str) else set(named)
            horizon = self.schedule.decide(get(prompts, "global_steps"), agents)
            assign_non_tensor_data(prompts, "agent_name", AGENT)
            assign_non_tensor_data(prompts, "horizon", horizon)
        super().generate_sequences(prompts)

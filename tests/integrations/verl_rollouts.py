"""Rolls out with the installed verl and prints the length of each rollout as JSON; `test_verl.py` runs it.

`verl_rollouts.py proto|queue OVERRIDE...` rolls out; `verl_rollouts.py refusals '["OVERRIDE", ...]'...` prints errors.

Configuration, managers, workers, agent loops, client, load balancer and TransferQueue are verl's own, in a local Ray.
An actor replaces the vLLM server, which needs a GPU: it answers with the quickstart's models and, like verl's server,
generates up to the configured response length if there is no `max_tokens`.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl import DataProto
from verl.utils.import_utils import load_class_from_fqn
from verl.workers.rollout.llm_server import GlobalRequestLoadBalancer, LLMServerClient
from verl.workers.rollout.replica import TokenOutput

import hopd

MODELS = Path(hopd.__file__).parent / "quickstart"
PROMPTS = ["472+185*c:", "031+240*c:", "999+111*c:", "507+306*c:"]
T = 24
STEPS = [(1, False), (3, False), (3, True), (9, False)]  # global step, validate


@ray.remote
class Server:
    def __init__(self, model, config):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.model: Any = AutoModelForCausalLM.from_pretrained(MODELS / model)
        self.config, self.scored = config, []

    @torch.no_grad()
    def generate(self, request_id, *, prompt_ids, sampling_params, **rest):
        ids = torch.tensor([prompt_ids])
        if "prompt_logprobs" in sampling_params:  # a teacher
            self.scored.append(len(prompt_ids))
            kept = self.model(ids).logits.log_softmax(-1).topk(sampling_params["prompt_logprobs"])
            fields = {"prompt_ids": kept.indices[0].tolist(), "prompt_logprobs": kept.values[0].tolist()}
            return TokenOutput(token_ids=[0], extra_fields=fields)
        tokens = min(sampling_params.get("max_tokens", self.config.response_length), self.config.response_length)
        whole = self.model.generate(ids, do_sample=False, max_new_tokens=tokens, pad_token_id=0)[0].tolist()
        response = whole[len(prompt_ids) :]
        return TokenOutput(token_ids=response, log_probs=[0.0] * len(response), stop_reason="completed")

    def sequences(self):
        scored, self.scored = self.scored, []
        return scored


def configuration(overrides):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose(
            "ppo_trainer",
            [
                f"actor_rollout_ref.model.path={MODELS / 'student'}",
                "actor_rollout_ref.model.custom_chat_template='{{ messages[0].content }}'",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.rollout.prompt_length=16",
                f"actor_rollout_ref.rollout.response_length={T}",
                "actor_rollout_ref.rollout.agent.num_workers=1",
                "distillation.enabled=true",
                "distillation.nnodes=1",
                "distillation.n_gpus_per_node=1",
                "distillation.teacher_models.teacher_model.key=default",
                "distillation.teacher_models.teacher_model.num_replicas=1",
                f"distillation.teacher_models.teacher_model.model_path={MODELS / 'teacher'}",
                "distillation.teacher_models.teacher_model.inference.tensor_model_parallel_size=1",
                "distillation.distillation_loss.loss_mode=forward_kl_topk",
                "distillation.distillation_loss.topk=4",
                "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
                *overrides,
            ],
        )


def client(model, config):
    server = Server.remote(model, config.actor_rollout_ref.rollout)  # type: ignore[attr-defined]  # given by Ray
    return server, LLMServerClient(config, ray.remote(GlobalRequestLoadBalancer).remote(servers={"one": server}))


def columns():
    return {
        "raw_prompt": [[{"role": "user", "content": prompt}] for prompt in PROMPTS],
        "data_source": ["addition"] * len(PROMPTS),
        "uid": [str(i) for i in range(len(PROMPTS))],
        "index": list(range(len(PROMPTS))),
    }


def with_data_proto(manager, step, validate):
    """Rolls out as `RayPPOTrainer.fit` and `_validate` do: the rollouts are joined to the batch that they came from."""
    arrays = {}
    for name, column in columns().items():
        arrays[name] = np.empty(len(column), dtype=object)
        arrays[name][:] = column
    meta = {"global_steps": step} | ({"validate": True} if validate else {})
    batch = DataProto.from_single_dict({"dummy": torch.zeros(len(PROMPTS), 1), **arrays}, meta_info=meta)
    output = manager.generate_sequences(batch.slice(0, None))
    output.meta_info.pop("timing")
    return batch.union(output).batch["response_mask"].sum(1).tolist()


def with_transfer_queue(manager, step, validate):
    """Rolls out as `PPOTrainer._submit_batch_to_rollout` and `_validate` do."""
    import transfer_queue as tq
    from verl.utils import tensordict_utils as tu

    given = {name: np.array(column, dtype=object) for name, column in columns().items() if name != "raw_prompt"}
    given["raw_prompt"] = np.empty(len(PROMPTS), dtype=object)
    given["raw_prompt"][:] = columns()["raw_prompt"]
    batch = tu.get_tensordict(given)
    tu.assign_non_tensor_data(batch, "global_steps", step)
    if validate:
        tu.assign_non_tensor_data(batch, "validate", True)
    partition = "val" if validate else "train"
    tags = [{"is_prompt": True, "status": "pending", "global_steps": step} for _ in PROMPTS]
    tq.kv_batch_put(keys=list(batch["uid"]), partition_id=partition, tags=tags)
    manager.generate_sequences(batch)
    for _ in range(600):
        held = tq.kv_list(partition_id=partition)[partition]
        if all(tag["status"] in ("finished", "failure") for tag in held.values() if tag.get("is_prompt")):
            break
        time.sleep(0.1)
    lengths = {key: tag["response_len"] for key, tag in held.items() if "response_len" in tag}
    tq.kv_clear(keys=list(held), partition_id=partition)
    return [lengths[key] for key in sorted(lengths)]


def refusals(cases):
    from hopd.errors import RecipeError
    from hopd.integrations.verl import Schedule

    for case in cases:
        try:
            Schedule(configuration(json.loads(case)))
        except RecipeError as error:
            print("RESULT " + json.dumps(str(error)), flush=True)


def roll_out(trainer, overrides):
    config = configuration(overrides)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    if trainer == "queue":
        import transfer_queue

        OmegaConf.set_struct(config, False)
        config.transfer_queue.enable = True
        transfer_queue.init(config.transfer_queue)
    lengths_of = with_transfer_queue if trainer == "queue" else with_data_proto
    _, student = client("student", config)
    judge, teacher = client("teacher", config)
    named = config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    manager = load_class_from_fqn(named, "AgentLoopManager").create(
        config=config, llm_client=student, teacher_client={"default": teacher}
    )
    for step, validate in STEPS:
        lengths = lengths_of(manager, step, validate)
        line = {"step": step, "validate": validate, "lengths": lengths, "scored": ray.get(judge.sequences.remote())}
        print("RESULT " + json.dumps(line), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    refusals(arguments) if what == "refusals" else roll_out(what, arguments)

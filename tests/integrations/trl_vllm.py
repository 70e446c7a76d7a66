"""Trains with TRL and vLLM in one process, on a CPU, and prints the completion lengths; `test_trl.py` runs it.

TRL loads the new weights into vLLM's model one by one, which vLLM's CPU build cannot do once it has packed them, so
this student samples with its initial weights. Everything else is TRL's and vLLM's own.
"""

import json
import tempfile

from hopd.horizon import Progressive
from tests.integrations.test_trl import GROWING, T, logged, make


def main(output):
    settings = {"use_vllm": True, "vllm_max_model_length": 256, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make(output, Progressive(T, **GROWING), max_steps=3, **settings)
    trainer.vllm_generation.sync_weights = lambda: None
    trainer.train()
    result = {"steps": trainer.steps, "evaluations": trainer.evaluations, "logged": logged(trainer, "horizon")}
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as output:
        main(output)

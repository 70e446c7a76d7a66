"""The horizon inside verl, with its own managers, workers, agent loops and teacher client.

`HOPD_VERL_PYTHON` is the path of a Python that has verl 0.9, TransferQueue, uvicorn and fastapi; without it, these
tests are skipped. verl's vLLM servers and its trainer need a GPU and are not run (`verl_rollouts.py`).
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("HOPD_VERL_PYTHON", "")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="HOPD_VERL_PYTHON is not set: it must be the path of a Python that has verl"
)
HERE = Path(__file__).parent
SOURCES, RECIPES = HERE.parents[1] / "src", HERE.parents[1] / "recipes"
LIBRARY = "actor_rollout_ref.model.external_lib=hopd.integrations.verl"
GROWING = [
    f"+actor_rollout_ref.rollout.custom.horizon.{option}"
    for option in ("controller=progressive", "start=4", "increment=3")
]
MANAGERS = {"proto": "hopd.integrations.verl.HorizonManager", "queue": "hopd.integrations.verl_queue.HorizonManager"}
PROMPT, T = 10, 24


def run(*command):
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"PATH": f"{Path(PYTHON).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended


def results(ended):
    return [json.loads(line) for line in re.findall("^RESULT (.*)$", ended.stdout, re.MULTILINE)]


@pytest.mark.parametrize("trainer", MANAGERS)
def test_training_obeys_the_horizon_of_its_global_step_and_validation_runs_to_the_full_length(trainer):
    manager = f"+actor_rollout_ref.rollout.agent.agent_loop_manager_class={MANAGERS[trainer]}"
    ended = run(PYTHON, str(HERE / "verl_rollouts.py"), trainer, manager, LIBRARY, *GROWING)
    batches = results(ended)
    trained = {batch["step"]: batch["lengths"] for batch in batches if not batch["validate"]}
    assert trained == {1: [4] * 4, 3: [10] * 4, 9: [T] * 4}  # verl counts from 1; 4 + 3 · 8 is more than T
    assert [batch["lengths"] for batch in batches if batch["validate"]] == [[T] * 4]
    # The teacher scores the prompt and what was sampled, and nothing of a validation.
    scored = [[PROMPT + n for n in batch["lengths"]] if not batch["validate"] else [] for batch in batches]
    assert [batch["scored"] for batch in batches] == scored
    assert "horizon of step 3: progressive: 4 + 3 · ⌊2 / 1⌋ = 10 tokens" in ended.stderr


def test_a_configuration_under_which_the_horizon_would_not_hold_is_refused():
    refused = {
        f"no horizon is configured; add {GROWING[0].replace('progressive', 'full')}, or another": [LIBRARY],
        f"verl's workers do not know the agent loop; add {LIBRARY}": GROWING,
        "horizon 'progressive' needs increment": [LIBRARY, *GROWING[:2]],
        "hopd limits the rollouts of single_turn_agent only, and 'tool_agent' would replace it": [
            LIBRARY,
            *GROWING,
            "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
        ],
    }
    ended = run(PYTHON, str(HERE / "verl_rollouts.py"), "refusals", *map(json.dumps, refused.values()))
    assert results(ended) == list(refused)


def test_the_launch_example_is_a_configuration_of_verl():
    ended = run("bash", str(RECIPES / "verl-popd.sh"), "--cfg", "job")
    for line in ("topk: 16", "max_response_length: 15360", "increment: 9", "external_lib: hopd.integrations.verl"):
        assert line in ended.stdout

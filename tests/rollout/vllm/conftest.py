"""What the tests with a scripted server share: the server, and an engine that syncs the student's weights to it."""

import pytest
import torch

from hopd.model import load
from hopd.processes import Processes
from hopd.recipe import VllmServers
from hopd.rollout import Prompt
from hopd.rollout.vllm.server import RemoteVllm
from hopd.rollout.weight_sync import WeightSync
from tests.rollout.vllm.scripted import ScriptedRollouts
from tests.teacher.scripted import STUDENT, TEACHER


@pytest.fixture(scope="module")
def process_of_server():
    server = ScriptedRollouts(TEACHER)  # with other weights than the student's, until the first sync
    yield server
    server.end()


@pytest.fixture
def server(process_of_server):
    process_of_server.tell("faults", [])
    process_of_server.tell("refuse", 0)
    process_of_server.tell("limit", 4096)
    return process_of_server


@pytest.fixture
def student():
    return load(STUDENT)


@pytest.fixture
def prompts(student):
    return [
        Prompt(n, torch.tensor(student.tokenizer(text).input_ids)) for n, text in enumerate(("041+185*c:", "7+2*c:"))
    ]


@pytest.fixture
def synced(student, tmp_path):
    def made(*servers, **settings):
        source = VllmServers(
            kind="vllm_server",
            server=[s if isinstance(s, str) else s.url for s in servers],
            weights="file",
            directory=str(tmp_path / "weights"),
            **{"backoff": 0.01, "timeout": 1.0, "deadline": 20.0, **settings},
        )
        engine = RemoteVllm(student, source)
        return WeightSync(engine, student, Processes(), torch.float32)

    return made

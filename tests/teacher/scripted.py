"""Starts the scripted server, and reads what runs with it have written."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file

STUDENT, TEACHER = (str(files("hopd") / "quickstart" / name) for name in ("student", "teacher"))
KEY = "sk-never-to-be-seen-9431"


class Scripted:
    """Starts a scripted server in a process and controls it."""

    script = Path(__file__).with_name("scripted_server.py")

    def __init__(self, model=TEACHER, port=0):
        self.process = subprocess.Popen(
            [sys.executable, str(self.script), model, str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HOPD_TEST_KEY": KEY},
        )
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}"

    def tell(self, path, content):
        request = urllib.request.Request(
            f"{self.url}/{path}", json.dumps(content).encode(), {"content-type": "application/json"}
        )
        urllib.request.urlopen(request).read()

    def log(self):
        return json.load(urllib.request.urlopen(f"{self.url}/log"))

    def end(self):
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


def weights(run):
    return load_file(sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors")


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def equal(mine, theirs):
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def after_steps(run, steps, act):
    """Calls `act` in a thread once `steps` steps of the run are complete."""

    def wait():
        while not (run / "metrics.jsonl").exists() or len(metrics(run)) < steps:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread

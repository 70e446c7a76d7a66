"""Starts a real `vllm serve` on loopback with another environment's Python, and stops it at the end.

`HOPD_VLLM_PYTHON` is the path of a Python that has vLLM; without it, the tests that need one are skipped.
"""

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

VLLM_PYTHON = os.environ.get("HOPD_VLLM_PYTHON", "")
needs_vllm = pytest.mark.skipif(
    not VLLM_PYTHON, reason="HOPD_VLLM_PYTHON is not set: it must be the path of a Python that has vLLM"
)
START_SECONDS = 420  # a CPU compiles and warms up for minutes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def vllm_server(
    python: str, model_directory: str | Path, *args: str, environment: dict[str, str] | None = None
) -> Iterator[str]:
    """Serves the model (float32, no prefix cache; `args` take precedence) and yields the server's address.

    The model's name is `model_directory` unless `args` say otherwise. Raises `RuntimeError`, with the end of
    the server's log, if it does not start.
    """
    port = free_port()
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    # Without the caller's PYTHONPATH, so that the other environment does not import packages of this one.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [
        python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_directory),
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-num-seqs", "16", "--no-enable-prefix-caching", *args,
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as somewhere:
        log = Path(somewhere) / "vllm.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=somewhere,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=inherited | settings | (environment or {}),
                start_new_session=True,  # a process group of its own, which ends with all its workers
            )
        try:
            _wait_until_ready(process, f"http://127.0.0.1:{port}", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            _end(process)


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"vLLM did not start:\n{log.read_text(errors='replace')[-4000:]}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    for signum, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(process.pid, signum)
            process.wait(patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # workers that outlived the server

"""One process trains a directory at a time, and its lock dies with it."""

import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest

from hopd.errors import RecipeError
from hopd.processes import Processes
from hopd.run.directory import LOCK, RunDirectory
from hopd.run.lock import locked

HOLD = """
import os, sys
from pathlib import Path
from hopd.processes import Processes
from hopd.run.directory import RunDirectory
from hopd.run.lock import locked
with locked(RunDirectory(Path(sys.argv[1])), Processes()):
    if len(sys.argv) > 2 and os.fork() == 0:
        print(os.getpid(), flush=True)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path / "runs" / "run")


def holder(directory, *arguments):
    """A process that holds the directory until it is killed."""
    command = [sys.executable, "-c", HOLD, directory.path, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_second_process_gets_a_sentence_that_names_the_first(directory):
    with holder(directory) as first:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(RecipeError, match=rf"run is being trained by process {first.pid} on "), held(directory):
            pytest.fail("two hold it")
        first.kill()
        first.wait()
        with held(directory) as notes:
            assert notes == []


def test_a_child_that_outlives_the_training_does_not_hold_its_lock(directory):
    with holder(directory, "fork") as first:
        lines = {first.stdout.readline().strip() for _ in range(2)}
        child = int(next(line for line in lines if line != "held"))
        first.kill()
        first.wait()
        with held(directory):
            os.kill(child, signal.SIGKILL)


def test_in_one_thread_blocks_nest_and_another_thread_is_refused(directory):
    refused = []

    def other():
        with pytest.raises(RecipeError, match="is being trained"), held(directory):
            pytest.fail("two hold it")
        refused.append(True)

    with held(directory), held(directory):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert refused


def test_a_directory_that_nothing_was_written_to_is_removed_with_what_was_made_for_it(directory, tmp_path):
    with held(directory):
        assert (directory.path / LOCK).exists()
    assert not list(tmp_path.iterdir())
    with held(directory):
        (directory.path / "recipe.yaml").write_text("")
    assert [path.name for path in directory.path.iterdir()] == ["recipe.yaml"]


def test_a_file_system_without_locks_is_noted(directory, monkeypatch):
    def none(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)  # no such file system can be mounted in a test
    with held(directory) as notes:
        assert "file system without locks" in notes[0]


def test_a_run_beside_another_is_refused_before_anything_is_loaded(command, tiny, directory):
    mine = RunDirectory(directory.path.parent / "tiny")
    with holder(mine) as first:
        assert first.stdout.readline() == "held\n"
        for arguments in ([], ["--resume"]):
            ended = command("train", tiny, "--set=student.model=/not/looked/at", *arguments)
            assert (ended.code, ended.err.count("\n")) == (2, 1)
            assert f"is being trained by process {first.pid}" in ended.err
        first.kill()
    assert command("train", tiny).code == 0  # what the killed one left is no run


def held(directory):
    return locked(directory, Processes())

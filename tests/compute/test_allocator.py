"""Checks, in processes of their own, whether freed memory stays with the process."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from hopd.compute import allocator
from hopd.distiller import Distiller
from hopd.model import load
from hopd.recipe import Recipe

SCRIPT = """
import torch
from hopd.compute.allocator import keep_freed_memory

if {keep}:
    keep_freed_memory()


def resident():
    return 4096 * int(open("/proc/self/statm").read().split()[1])


block = torch.ones(64, 2**20)
filled = resident()
del block
print(filled - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc, and /proc")
@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_stays_with_the_process_only_after_keep_freed_memory(keep):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True)
    given_back, size = int(done.stdout), 64 * 2**22
    assert given_back < 0.1 * size if keep else given_back > 0.9 * size


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_run_keeps_freed_memory_and_loading_a_model_does_not(tiny, monkeypatch):
    asked = []
    library = SimpleNamespace(mallopt=lambda *option: asked.append(option))
    monkeypatch.setattr(allocator, "ctypes", SimpleNamespace(CDLL=lambda name: library))
    allocator.keep_freed_memory.cache_clear()
    load("package:hopd/quickstart/student")
    assert asked == []
    Distiller.of(Recipe.load(tiny))
    assert len(asked) == 2

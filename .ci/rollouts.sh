#!/usr/bin/env bash
# The tests of rollouts against vLLM, where a missing vLLM fails them. Arguments go to pytest in place of the test files;
# ZOOMZERO_VLLM chooses vLLM's release (see .ci/rollouts_environment.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

.ci/rollouts_environment.sh
if [ $# = 0 ]; then set -- tests/rollouts; fi
ZOOMZERO_REQUIRE_ROLLOUTS=1 OMP_NUM_THREADS=1 .venv/rollouts/bin/python -m pytest -p no:cacheprovider "$@"

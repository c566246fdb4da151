#!/usr/bin/env bash
# The tests against verl and Liger, where a missing library fails them. Arguments go to pytest in place of the test files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

.ci/rivals_environment.sh
if [ $# = 0 ]; then set -- tests/kernels/test_rivals_liger.py tests/integrations/test_verl*.py; fi
ZOOMZERO_REQUIRE_RIVALS=1 OMP_NUM_THREADS=1 .venv/rivals/bin/python -m pytest -p no:cacheprovider "$@"

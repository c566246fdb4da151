#!/usr/bin/env bash
# The tests of the integration into lmms-eval, where a missing lmms-eval fails them. Arguments go to pytest in place of the test file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

.ci/lmms_eval_environment.sh
if [ $# = 0 ]; then set -- tests/integrations/test_lmms_eval.py; fi
ZOOMZERO_REQUIRE_LMMS_EVAL=1 OMP_NUM_THREADS=1 .venv/lmms_eval/bin/python -m pytest -p no:cacheprovider "$@"

#!/usr/bin/env bash
# Style and types of everything: Python, C++ and CUDA, shell, and the picture of the parts. Changes nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bin=.venv/bin
if ! command -v shellcheck > /dev/null; then
  echo "lint: shellcheck must be installed, found none; run .ci/system_packages.sh, or apt-get install shellcheck" >&2
  exit 1
fi
$bin/ruff check .
$bin/ruff format --check .
$bin/mypy zoomzero zoomzero_kernels build_backend
git ls-files -z '*.cpp' '*.h' '*.cu' '*.cuh' '*.c' | xargs -0 $bin/clang-format --dry-run --Werror
git ls-files -z '.ci/*.sh' .ci/run | xargs -0 shellcheck --external-sources --source-path=SCRIPTDIR
$bin/python docs/draw_architecture.py --check

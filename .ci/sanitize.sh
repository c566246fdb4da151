#!/usr/bin/env bash
# The CPU ops under AddressSanitizer and UndefinedBehaviorSanitizer: a CPU-only build of its own, in a temporary folder, run
# through the tests of the native ops. ZOOMZERO_CPU_CAPABILITY=AVX2, say, leaves the other instruction sets out.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${ZOOMZERO_PYTHON:-$PWD/.venv/bin/python}
if [ ! -x "$python" ]; then python=$(command -v python3); fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

PATH="$(dirname "$python"):$PATH" ZOOMZERO_CUDA=OFF ZOOMZERO_SANITIZE=ON "$python" -m pip install --quiet --no-deps \
  --no-build-isolation --target "$scratch/site" --config-settings "build-dir=$scratch/build" .

# Python itself is not instrumented, so the runtime must be loaded first. It leaks on purpose: leak detection is off. torch
# throws C++ exceptions across libraries without instrumentation, which the container checks would misread.
runtime=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so)
for capability in ${ZOOMZERO_CPU_CAPABILITY:-DEFAULT AVX2 AVX512}; do
  echo "sanitized run: $capability"
  LD_PRELOAD=$runtime ASAN_OPTIONS=detect_leaks=0:detect_container_overflow=0 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ZOOMZERO_CPU_CAPABILITY=$capability PYTHONPATH="$scratch/site" \
    OMP_NUM_THREADS=2 "$python" .ci/sanitized_tests.py "$scratch/site" tests/kernels/test_frame_resample.py \
    tests/kernels/test_token_resample.py tests/kernels/test_token_advantages.py tests/kernels/test_grpo_loss.py tests/kernels/test_selective_logps.py \
    -q -p no:cacheprovider -k "not compile and not opcheck and not instruction_set"
done

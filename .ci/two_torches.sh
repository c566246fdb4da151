#!/usr/bin/env bash
# One wheel, two torches: the kernels' tests from the wheel in dist/ (made where none is as new as the sources), away from the
# sources, under the torch of .venv and under an older CPU release. Installing the wheel must need no compiler; it says how long it
# took. Another release, with the Python of .venv: ZOOMZERO_OTHER_TORCH=2.9.1 .ci/two_torches.sh
set -euo pipefail
# shellcheck source=.ci/install_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/install_common.sh"

other_torch=${ZOOMZERO_OTHER_TORCH:-2.13.0}
python_to_test=${ZOOMZERO_PYTHON:-$checkout/.venv/bin/python}
tag=$("$python_to_test" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')

# newest_wheel: that of this Python in dist/, nothing where there is none.
newest_wheel() {
  find "$checkout/dist" -name "zoomzero-*-$tag-$tag-manylinux*.whl" -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-
}

mkdir -p "$checkout/dist"
wheel=$(newest_wheel)
parts=("$checkout"/{build_backend,csrc,zoomzero,zoomzero_kernels,CMakeLists.txt,pyproject.toml})
if [ -z "$wheel" ] || [ -n "$(find "${parts[@]}" -type f -newer "$wheel" -not -name '*.pyc' -print -quit)" ]; then
  ZOOMZERO_PYTHON=$python_to_test "$checkout/.ci/wheel.sh"
  wheel=$(newest_wheel)
fi

# install_wheel NAME: with a PATH on which no compiler lies.
install_wheel() {
  local started=$SECONDS
  (PATH="$scratch/$1/bin" "$scratch/$1/bin/python" -m pip install --quiet --no-deps --no-index "$wheel")
  echo "installed without a compiler in $((SECONDS - started)) s"
}

# run_tests NAME: the sources hold no package here, so only the installed one can be found.
run_tests() {
  smoke "$1" yes
  (cd "$scratch/source" && OMP_NUM_THREADS=1 "$scratch/$1/bin/python" -m pytest -p no:cacheprovider -m "not slow" \
    --ignore=tests/kernels/test_rivals.py --ignore=tests/kernels/test_rivals_liger.py tests/kernels)
}

rm -r "$scratch/source/zoomzero" "$scratch/source/zoomzero_kernels"

fresh_venv today
share_torch today
install_wheel today
run_tests today

fresh_venv other
"$scratch/other/bin/pip" install --quiet "torch==$other_torch" numpy pytest hypothesis
install_wheel other
run_tests other

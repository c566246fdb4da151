#!/usr/bin/env bash
# The tests against verl and Liger, which need those libraries: in an environment of their own, .venv/rivals, that sees the
# packages of .venv (torch, transformers and this project among them) and adds pinned versions. It is built once and again
# whenever this script or the list beside it changes. Arguments go to pytest in place of the test files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -e .venv/.project ]; then
  echo ".ci/rivals.sh: .venv must hold the project, got none; run make setup first" >&2
  exit 1
fi
rivals=.venv/rivals
if [ ! -e $rivals/.installed ] || [ .ci/rivals.txt -nt $rivals/.installed ] || [ .ci/rivals.sh -nt $rivals/.installed ]; then
  rm -rf $rivals
  .venv/bin/python -m venv $rivals
  # addsitedir also reads the .pth files there: the editable installation of this project is one.
  .venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
    > "$(echo $rivals/lib/python3.*/site-packages)/project_environment.pth"
  # The torch that the project is built against must stay.
  .venv/bin/python -c 'import torch; print("torch==" + torch.__version__.partition("+")[0])' > $rivals/constraints.txt
  $rivals/bin/pip install --quiet --constraint $rivals/constraints.txt --requirement .ci/rivals.txt
  $rivals/bin/pip install --quiet --no-deps liger-kernel==0.8.5 verl==0.9.1
  touch $rivals/.installed
fi
if [ $# = 0 ]; then set -- tests/test_rivals_liger.py tests/test_integrations_verl.py; fi
ZOOMZERO_REQUIRE_RIVALS=1 OMP_NUM_THREADS=1 $rivals/bin/python -m pytest -p no:cacheprovider "$@"

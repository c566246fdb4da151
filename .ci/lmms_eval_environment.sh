#!/usr/bin/env bash
# Builds .venv/lmms_eval: an environment that sees the packages of .venv (this project among them) and adds lmms-eval 0.7.3, whose
# requirements clash with the project's. Nothing happens where it is built already; a change of this script or of the list beside it
# builds it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -e .venv/.project ]; then
  echo ".ci/lmms_eval_environment.sh: .venv must hold the project, got none; run make setup first" >&2
  exit 1
fi
lmms=.venv/lmms_eval
stamp=$lmms/.installed
# A file is newer than one that is absent.
if [ .ci/lmms_eval.txt -nt $stamp ] || [ .ci/lmms_eval_environment.sh -nt $stamp ]; then
  rm -rf $lmms
  .venv/bin/python -m venv $lmms
  # addsitedir also reads the .pth files there: the editable installation of this project is one.
  .venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
    > "$(echo $lmms/lib/python3.*/site-packages)/project_environment.pth"
  $lmms/bin/pip install --quiet --no-deps --requirement .ci/lmms_eval.txt
  $lmms/bin/pip install --quiet --no-deps lmms-eval==0.7.3
  touch $stamp
fi

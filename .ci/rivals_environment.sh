#!/usr/bin/env bash
# Builds .venv/rivals: an environment that sees the packages of .venv (torch, transformers and this project among them) and adds
# pinned versions of verl and Liger, for tests and benchmarks against them. Nothing happens where it is built already; a change of
# this script or of the list beside it builds it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -e .venv/.project ]; then
  echo ".ci/rivals_environment.sh: .venv must hold the project, got none; run make setup first" >&2
  exit 1
fi
rivals=.venv/rivals
stamp=$rivals/.installed
# A file is newer than one that is absent.
if [ .ci/rivals.txt -nt $stamp ] || [ .ci/rivals_environment.sh -nt $stamp ] || [ .venv/.torch -nt $stamp ]; then
  rm -rf $rivals
  .venv/bin/python -m venv $rivals
  # addsitedir also reads the .pth files there: the editable installation of this project is one.
  .venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
    > "$(echo $rivals/lib/python3.*/site-packages)/project_environment.pth"
  # The torch that the project is built against must stay.
  .venv/bin/python -c 'import torch; print("torch==" + torch.__version__.partition("+")[0])' > $rivals/constraints.txt
  $rivals/bin/pip install --quiet --constraint $rivals/constraints.txt --requirement .ci/rivals.txt
  $rivals/bin/pip install --quiet --no-deps liger-kernel==0.8.5 TransferQueue==0.1.11 verl==0.9.1
  # The transformers that verl asks for, with the two libraries that this one wants older too; on the path of nothing but the
  # processes of tests/integrations/test_verl_pins.py.
  $rivals/bin/pip install --quiet --no-deps --target $rivals/verl_pins transformers==5.10.4 tokenizers==0.22.2 huggingface_hub==1.33.0
  touch $stamp
fi

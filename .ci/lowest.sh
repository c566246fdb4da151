#!/usr/bin/env bash
# The lowest releases that the project allows: reading, looking and answering with torch 2.9 and transformers 5.5. The wheel in dist/
# (made where there is none) is what is tested. Downloads gigabytes, so .ci/run leaves it out unless asked.
set -euo pipefail
# shellcheck source=.ci/install_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/install_common.sh"

if ! compgen -G "$checkout/dist/zoomzero-*.whl" > /dev/null; then "$checkout/.ci/wheel.sh"; fi
wheel=$(find "$checkout/dist" -name "zoomzero-*.whl" -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
fresh_venv lowest
"$scratch/lowest/bin/pip" install --quiet torch==2.9.1 torchvision==0.24.1 numpy==1.26.4 transformers==5.5.3 av==17.1.0 jinja2 \
  markupsafe pillow tqdm pyarrow==17.0.0 pytest hypothesis
"$scratch/lowest/bin/pip" install --quiet --no-deps "$wheel"
smoke lowest
rm -r "$scratch/source/zoomzero" "$scratch/source/zoomzero_kernels"
cd "$scratch/source"
OMP_NUM_THREADS=1 "$scratch/lowest/bin/python" -m pytest -p no:cacheprovider -m "not slow" tests/answering tests/looks tests/video

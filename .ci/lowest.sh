#!/usr/bin/env bash
# The lowest releases that the project allows, as pyproject.toml names them: reading, looking and answering. The wheel in dist/
# (made where there is none) is what is tested. Downloads gigabytes, so .ci/run leaves it out unless asked.
set -euo pipefail
# shellcheck source=.ci/install_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/install_common.sh"

if ! compgen -G "$checkout/dist/zoomzero-*.whl" > /dev/null; then "$checkout/.ci/wheel.sh"; fi
wheel=$(find "$checkout/dist" -name "zoomzero-*.whl" -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-)

# The lower bounds of the project and of its extras for answering and evaluating, as exact versions.
"$python_to_test" - "$checkout/pyproject.toml" > "$scratch/lowest.txt" <<'PYTHON'
import re
import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["answer"], *extras["eval"]]:
    if not requirement.startswith("zoomzero["):
        name, version = re.fullmatch(r"([\w-]+)>=([\d.]+).*", requirement).groups()
        print(f"{name}=={version}")
PYTHON
cat "$scratch/lowest.txt"
fresh_venv lowest
# torchvision is what the processors of transformers, which tests compare with, ask for: the release for that torch.
"$scratch/lowest/bin/pip" install --quiet --requirement "$scratch/lowest.txt" torchvision==0.24.0 pytest hypothesis
"$scratch/lowest/bin/pip" install --quiet --no-deps "$wheel"
smoke lowest
rm -r "$scratch/source/zoomzero" "$scratch/source/zoomzero_kernels"
cd "$scratch/source"
OMP_NUM_THREADS=1 "$scratch/lowest/bin/python" -m pytest -p no:cacheprovider -m "not slow" tests/kernels tests/video tests/looks tests/answering

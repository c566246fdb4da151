# shellcheck shell=bash
# Shared by the three installation checks. Source it; it makes a temporary folder that is removed at exit.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A clean copy of the sources, so that no build folder of the checkout takes part.
mkdir "$scratch/source"
(cd "$checkout" && git ls-files -z | xargs -0 -I{} cp --parents {} "$scratch/source" 2>/dev/null)
python_to_test=${ZOOMZERO_PYTHON:-python3}

# fresh_venv NAME: an empty virtual environment in $scratch/NAME.
fresh_venv() {
  "$python_to_test" -m venv "$scratch/$1"
}

# share_torch NAME: lets that environment see the packages of the running interpreter's environment, torch among them.
share_torch() {
  local site
  site=$("$python_to_test" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)')
  echo "$site" > "$(echo "$scratch/$1"/lib/python3.*/site-packages)/shared_torch.pth"
}

# smoke NAME [CUDA]: imports the installed package away from the sources, runs an op; CUDA: yes or no, what the build must have.
smoke() {
  (cd "$scratch" && "$scratch/$1/bin/python" - "${2:-any}" <<'PYTHON'
import sys

import torch

import zoomzero_kernels
from zoomzero_kernels import reference

info = zoomzero_kernels.build_info()
print(info)
frames = torch.arange(4 * 60 * 80 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).view(4, 60, 80, 3)
patches = zoomzero_kernels.frame_resample(frames, size=(28, 56), mean=(0.5,) * 3, std=(0.5,) * 3)
truth = reference.frame_resample(frames, size=(28, 56), mean=(0.5,) * 3, std=(0.5,) * 3)
torch.testing.assert_close(patches, truth)
wanted = {"yes": True, "no": False, "any": info["cuda_built"] is not None}[sys.argv[1]]
if (info["cuda_built"] is not None) is not wanted:
    sys.exit(f"expected CUDA kernels: {wanted}, got build {info}")
PYTHON
  )
}

# own_torch NAME: yes where that environment holds a torch of its own.
own_torch() {
  if compgen -G "$scratch/$1/lib/python3.*/site-packages/torch" > /dev/null; then echo yes; else echo no; fi
}

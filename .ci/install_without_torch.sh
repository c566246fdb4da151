#!/usr/bin/env bash
# No torch in the environment: plain `pip install .` must build without one and fetch one to run with.
# Downloads torch: several gigabytes, so .ci/run leaves it out unless asked.
source "$(dirname "${BASH_SOURCE[0]}")/install_common.sh"

fresh_venv venv
export TMPDIR="$scratch"
"$scratch/venv/bin/pip" install --quiet "$scratch/source"
if [ "$(own_torch venv)" = no ]; then
  echo "torch was not installed" >&2
  exit 1
fi
smoke venv
echo "installed into an empty environment"

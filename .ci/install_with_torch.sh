#!/usr/bin/env bash
# torch is already installed: plain `pip install .`, build isolation and all, must bring no second torch.
source "$(dirname "${BASH_SOURCE[0]}")/install_common.sh"

fresh_venv venv
share_torch venv
"$scratch/venv/bin/pip" install --quiet "$scratch/source" --log "$scratch/pip.log"
if [ "$(own_torch venv)" = yes ] || grep -qE "(Downloading|Using cached) torch-" "$scratch/pip.log"; then
  echo "a second torch was downloaded" >&2
  exit 1
fi
smoke venv
echo "installed against the torch that was there"

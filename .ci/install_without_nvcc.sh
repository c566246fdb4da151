#!/usr/bin/env bash
# No nvcc on the machine: plain `pip install .` must give the CPU-only build, and say so.
source "$(dirname "${BASH_SOURCE[0]}")/install_common.sh"

fresh_venv venv
share_torch venv
# A PATH of everything but nvcc, and none of the other ways in which CMake finds it.
mkdir "$scratch/bin"
IFS=: read -ra folders <<< "$PATH"
for folder in "${folders[@]}"; do
  for tool in "$folder"/*; do
    name=$(basename "$tool")
    case $name in nvcc | cuda*) continue ;; esac
    if [ -x "$tool" ] && [ ! -e "$scratch/bin/$name" ]; then ln -s "$tool" "$scratch/bin/$name"; fi
  done
done
env -u CUDA_HOME -u CUDA_PATH -u CUDACXX -u CUDAToolkit_ROOT -u ZOOMZERO_CUDA PATH="$scratch/bin" \
  "$scratch/venv/bin/pip" install --quiet "$scratch/source"
smoke venv no
echo "installed without nvcc"

#!/usr/bin/env bash
# Debian packages that tests and lint use: Chromium shows the report's page, shellcheck reads the scripts, the native code is
# also compiled for aarch64 and run under an emulator. Nothing happens where they are there already.
set -euo pipefail

missing=()
command -v chromium > /dev/null || missing+=(chromium fonts-dejavu-core)
command -v shellcheck > /dev/null || missing+=(shellcheck)
command -v aarch64-linux-gnu-g++ > /dev/null || missing+=(g++-aarch64-linux-gnu libc6-dev-arm64-cross)
command -v qemu-aarch64 > /dev/null || missing+=(qemu-user)
if [ ${#missing[@]} = 0 ]; then exit 0; fi
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null

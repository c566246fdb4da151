#!/usr/bin/env bash
# Debian packages that tests use: Chromium shows the report's page. Nothing happens where it is there already.
set -euo pipefail

command -v chromium >/dev/null && exit 0
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null

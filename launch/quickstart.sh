#!/usr/bin/env bash
# From a fresh clone to a pretrained, resumed, fine-tuned and evaluated Vision Transformer: one command.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
use_venv quickstart
exec python -m launch.quickstart "$@"

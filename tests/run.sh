#!/usr/bin/env bash
# The tests, from a fresh clone, three files at a time: some wait more than they compute. Arguments go to pytest;
# -n 0 for one after the other, --quick for short ones that start no other process.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
use_venv test
exec python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"

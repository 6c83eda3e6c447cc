#!/usr/bin/env bash
# The tests, from a fresh clone. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
use_venv test
exec python -m pytest "$@"

#!/usr/bin/env bash
# The tests, from a fresh clone, three files at a time: some wait more than they compute. Arguments go to pytest;
# -n 0 for one after the other, --quick for short ones that start no other process.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/venv.sh
use_venv test
# timm's Vision Transformers, which ours are held against, need none of its dependencies. Without it they skip.
python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("timm") is None)' ||
  python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps timm==1.0.31 ||
  echo "timm could not be installed: the tests that compare with it are skipped" >&2
exec python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"

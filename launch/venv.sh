# Sourced by launch/quickstart.sh and tests/run.sh: makes .venv in the repository, installs what
# constraints.txt pins, and activates it. A second call finds that nothing changed and skips both.
#   use_venv EXTRA      EXTRA: the optional dependencies of pyproject.toml to install

venv_stamp() {
  echo ".venv/installed-$1-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)"
}

use_venv() {
  local extra=$1 python="" candidate stamp
  if [ ! -x .venv/bin/python ]; then
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
      fi
    done
    [ -n "$python" ] || { echo "error: Python 3.11 or newer is needed; set PYTHON to it" >&2; exit 2; }
    echo "making .venv with $("$python" --version)"
    if ! "$python" -c 'import ensurepip' 2>/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "installing python3-venv, which Debian keeps in a package of its own"
      apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
    fi
    if ! "$python" -m venv .venv >/dev/null; then
      rm -rf .venv
      echo "error: $python cannot make virtual environments: sudo apt-get install python3-venv" >&2
      exit 2
    fi
  fi
  . .venv/bin/activate
  unset PYTHONDONTWRITEBYTECODE  # nothing is compiled yet (see below), so every start would compile anew
  stamp=$(venv_stamp "$extra")
  if [ ! -e "$stamp" ]; then
    echo "installing what constraints.txt pins into .venv"
    # Without --no-compile pip compiles 11,000 files, most of which nothing ever imports.
    python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt \
      --editable ".[$extra]"
    touch "$stamp"
  fi
}

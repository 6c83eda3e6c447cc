#!/usr/bin/env bash
# The whole suite on machines unlike this one, each from a fresh clone. By hand: it takes some hours.
#
#   bash tests/machines.sh                       each condition on its own
#   bash tests/machines.sh user+c+order core     these: one run of three conditions together, one of another
#
# default  torch without vector instructions    core   one core            busy   beside two busy loops
# user     not root (needs root to become it)   home   none to write to    c      LC_ALL=C
# path     a folder named with space, umlaut    alone  no ../shared        order  files in random order
#
# PYTEST_ARGS go to pytest. Ends with 1 if a run failed; the output of each lies in the folder that is printed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
logs=$(mktemp -d)
echo "logs in $logs"
[ $# -gt 0 ] || set -- default core busy user home c path alone order

has() { [[ "+$conditions+" == *"+$1+"* ]]; }

run() {
  local conditions=$1 base folder prefix=() env=() files=() loops=() code=0
  base=$(mktemp -d)
  folder=$base/project
  has path && folder="$base/Ein schöner Ort/project"
  git clone -q "$root" "$folder"
  has alone || ! [ -d "$root/../shared" ] || ln -s "$(realpath "$root/../shared")" "$(dirname "$folder")/shared"
  has default && env+=(ATEN_CPU_CAPABILITY=default)
  has c && env+=(LC_ALL=C LANG=C)
  has home && env+=(HOME=/proc)
  has core && prefix+=(taskset -c 0)
  if has user; then
    chmod 755 "$base"
    chown -R nobody "$base"
    prefix+=(setpriv --reuid nobody --regid nogroup --clear-groups --inh-caps=-all)
    has home || env+=("HOME=$base")
    env+=(USER=nobody LOGNAME=nobody)
  fi
  if has order; then
    mapfile -t files < <(cd "$root" && git ls-files 'tests/*/test_*.py' 'tests/test_*.py' | shuf)
    printf '%s\n' "${files[@]}" >"$logs/$conditions.order"
  fi
  if has busy; then
    for _ in 1 2; do while :; do :; done & loops+=($!); done
  fi
  SECONDS=0
  # shellcheck disable=SC2086
  (cd "$folder" && env "${env[@]}" "${prefix[@]}" bash tests/run.sh ${PYTEST_ARGS-} "${files[@]}") \
    >"$logs/$conditions.log" 2>&1 </dev/null || code=$?
  [ ${#loops[@]} = 0 ] || kill "${loops[@]}"
  echo "$conditions: exit code $code after $SECONDS s: $(grep -aE '^[0-9]+ (passed|failed)|(passed|failed).* in ' "$logs/$conditions.log" | tail -1)"
  grep -aE '^(FAILED|ERROR) ' "$logs/$conditions.log" || true
  rm -rf "$base"
  return $code
}

failed=0
for each in "$@"; do run "$each" || failed=1; done
exit $failed

#!/usr/bin/env bash
# shellcheck shell=bash
# What the scripts share: where things are, and how they call script/helper.py, which does the work with svcctl's launcher
# (ctl/launcher): what a script starts svcctl sees and stops, and the other way round.

set -euo pipefail

SVC_ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
SVC_LOGS="$SVC_ROOT/logs"
SVC_VENV="${SVC_VENV:-$SVC_ROOT/.venv}"
[[ $SVC_VENV == /* ]] || SVC_VENV="$PWD/$SVC_VENV" # as the caller sees it; we work in other folders
SVC_PYTHON="$SVC_VENV/bin/python"

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }

# fail MESSAGE [EXIT-CODE]: tell what is wrong, and end.
fail() {
  warn "error: $1"
  exit "${2:-1}"
}

# has_ended PID: no such process, or a zombie.
has_ended() {
  local stat=""
  read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
  [[ ${stat##*) } == Z* ]]
}

# packages: print the folder of our packages: the tree; in an image, whose tree has none, where they are installed.
packages() {
  if [[ -d $SVC_ROOT/common ]]; then
    printf '%s\n' "$SVC_ROOT"
  else
    "$SVC_PYTHON" -P -c 'import inference_svc; print(inference_svc.ROOT)'
  fi
}

# helper COMMAND ARGS…: script/helper.py under the project's Python, in this shell's place. What PYTHONPATH says is kept for
# the servers that it is meant for (common/own_python.py).
helper() {
  SUITE_GIVEN_PYTHONPATH="${SUITE_GIVEN_PYTHONPATH-${PYTHONPATH:-}}"
  PYTHONPATH="$(packages)"
  export SUITE_GIVEN_PYTHONPATH PYTHONPATH
  exec "$SVC_PYTHON" -P "$SVC_ROOT/script/helper.py" "$@"
}

# prepare: the Python environment, and a folder for logs and pid files.
prepare() {
  SVC_COMPILE="${SVC_COMPILE:-new}" "$SVC_ROOT/script/setup.sh" run
  mkdir -p -- "$SVC_LOGS" || true
  [[ -d $SVC_LOGS && -w $SVC_LOGS && -x $SVC_LOGS ]] || fail "$SVC_LOGS cannot be written by user $(id -u): \
it belongs to user $(stat -c %u -- "$SVC_LOGS" 2>/dev/null || echo "of nobody: it cannot be made").
  Have it belong to that user; in a container, run as the folder's owner: --user \"\$(id -u):\$(id -g)\"" 78
}

# launch WHAT NAME…: launch it, in this shell's place; it is told these variables, exported or not.
launch() {
  local what=$1 name pairs=()
  shift
  for name in "$@"; do pairs+=("$name=${!name:-}"); done
  prepare
  helper up "$what" "${pairs[@]}"
}

# stop WHAT [WORD]: end what was launched from this folder, in this shell's place.
stop() {
  if [[ ! -x $SVC_PYTHON ]]; then
    compgen -G "$SVC_LOGS/*.pid" >/dev/null || { say "nothing was launched from here"; exit 0; }
    "$SVC_ROOT/script/setup.sh" run
  fi
  helper down "$@"
}

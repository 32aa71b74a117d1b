#!/usr/bin/env bash
# Stop babysitters launched from this folder, and their servers: script/stop_babysitter.sh [PORT|NAME]; all without one.
# STOP_TIMEOUT (90 s) bounds the wait.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
wanted="${1:-}"
mapfile -t running < <(known_processes babysitter_)
chosen=()
for name in "${running[@]}"; do
  read -r port _ label <<<"$(told_of "$name")"
  if [[ -z $wanted || $port == "$wanted" || $label == "$wanted" ]]; then chosen+=("$name"); fi
done
if ((${#chosen[@]} > 0)); then
  stop_processes "$SVC_STOP_TIMEOUT_S" "${chosen[@]}"
elif [[ -z $wanted ]]; then
  say "babysitters: none runs"
else
  fail "no babysitter with the port or name '$wanted' was launched from $SVC_ROOT"
fi

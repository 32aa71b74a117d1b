#!/usr/bin/env bash
# Show what was launched from this folder: process, pid, port, health, models. Exit 0 when all of it is healthy.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
rows=()
agent=()
if [[ -f $(pid_file agent) ]]; then agent=(agent); fi # a node may do without one
for name in registry router "${agent[@]}" $(known_processes babysitter_); do
  if pid="$(pid_of "$name")"; then
    read -r port url _ <<<"$(told_of "$name")"
    rows+=("$name,$pid,$port,$url")
  else
    rows+=("$name,,-,")
  fi
done
if [[ ! -x $SVC_PYTHON ]]; then
  say "Nothing was launched from here yet. Start with ./script/launch_all.sh"
  exit 1
fi
helper status "${rows[@]}"

#!/usr/bin/env bash
# Show what was launched from this folder: process, pid, port, health, models. Exit 0 when all of it is healthy.
# A part that was left out or stopped by the scripts has no pid file and is not missed, unless nothing runs at all.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
if [[ ! -x $SVC_PYTHON ]]; then
  say "Nothing was launched from here yet. Start with ./script/launch_all.sh"
  exit 1
fi
helper status

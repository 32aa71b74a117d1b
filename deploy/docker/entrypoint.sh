#!/usr/bin/env bash
# Launch the node and stay in the foreground: ends with the node at SIGTERM, and by itself when a part of it ends.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../../script/lib.sh"

finish() {
  trap - TERM INT
  "$SVC_ROOT/script/stop_all.sh"
  exit "$1"
}
trap 'finish 0' TERM INT

# In the background, so that a signal is heard at once and not after the launch.
"$SVC_ROOT/script/launch_all.sh" &
wait $! || finish $?
mapfile -t names < <(known_processes "")
while true; do
  for name in "${names[@]}"; do
    pid_of "$name" >/dev/null || { warn "$name has ended; see its log in $SVC_LOGS" && finish 1; }
  done
  sleep 1 &
  wait $! || true
done

#!/usr/bin/env bash
# Launch the node and stay in the foreground: ends with the node at SIGTERM, and by itself when a part of it ends.
# With words, run them instead: entrypoint.sh svc-registry --port 18000

if (($#)); then exec "$@"; fi

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../../script/lib.sh"

# A signal may come while a call below is redirected, and the trap would inherit that.
exec 7>&1
finish() {
  trap - TERM INT
  "$SVC_ROOT/script/stop_all.sh" >&7
  exit "$1"
}
trap 'finish 0' TERM INT

# Pid files of an earlier container, in a logs/ that outlived it, mean nothing here.
rm -f -- "$SVC_LOGS"/*.pid
# In the background, so that a signal is heard at once and not after the launch.
"$SVC_ROOT/script/launch_all.sh" 7>&- &
wait $! || finish $?
launched=("$SVC_LOGS"/*.pid)
while true; do
  for file in "${launched[@]}"; do
    name="$(basename -- "$file" .pid)"
    if ! pid_of "$name" >/dev/null; then
      warn "$name has ended; see its log in $SVC_LOGS"
      finish 1
    fi
  done
  sleep 1 7>&- &
  wait $! || true
done

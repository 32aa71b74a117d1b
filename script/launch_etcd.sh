#!/usr/bin/env bash
# Launch one etcd on loopback, the store that several registries share: script/launch_etcd.sh [stop]
# Variables: ETCD_PORT (2379), ETCD_PEER_PORT (2380), ETCD_DATA_DIR (data/etcd), ETCD_WAIT_TIMEOUT (20 s).
# One member survives a restart, not the loss of its machine: for that, run three on three nodes.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

ETCD_PORT="${ETCD_PORT:-2379}"
ETCD_PEER_PORT="${ETCD_PEER_PORT:-2380}"
ETCD_DATA_DIR="${ETCD_DATA_DIR:-$SVC_ROOT/data/etcd}"
ETCD_WAIT_TIMEOUT="${ETCD_WAIT_TIMEOUT:-20}"
for name in ETCD_PORT ETCD_PEER_PORT ETCD_WAIT_TIMEOUT; do
  [[ ${!name} =~ ^[0-9]{1,5}$ ]] || fail "$name must be a number, not '${!name}'" 78
done
pid_file="$SVC_LOGS/etcd.pid"
log="$SVC_LOGS/etcd_$ETCD_PORT.log"
url="http://127.0.0.1:$ETCD_PORT"
peer="http://127.0.0.1:$ETCD_PEER_PORT"

# our_etcd: print the pid of the etcd that this script started, if it runs.
our_etcd() {
  local pid=""
  [[ -f $pid_file ]] || return 1
  read -r pid <"$pid_file" || true
  [[ $pid =~ ^[1-9][0-9]*$ && -r /proc/$pid/environ ]] || return 1
  tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qxF -- "SVC_LAUNCHED=$SVC_ROOT:etcd" && printf '%s\n' "$pid"
}

# answers: etcd says that it is healthy. (bash's own TCP: curl need not be there.)
answers() {
  local line
  {
    exec 3<>"/dev/tcp/127.0.0.1/$ETCD_PORT" || return 1
    printf 'GET /health HTTP/1.0\r\n\r\n' >&3
    while IFS= read -r -t 2 line <&3; do
      if [[ $line == *'"health":"true"'* ]]; then break; fi
    done
    exec 3>&-
  } 2>/dev/null
  [[ ${line:-} == *'"health":"true"'* ]]
}

if [[ ${1:-} == stop ]]; then
  pid="$(our_etcd)" || { say "etcd: not running"; exit 0; }
  kill -TERM "$pid"
  deadline=$((SECONDS + ETCD_WAIT_TIMEOUT))
  until has_ended "$pid"; do
    ((SECONDS < deadline)) || fail "etcd (pid $pid) did not end within $ETCD_WAIT_TIMEOUT s"
    sleep 0.1
  done
  rm -f -- "$pid_file"
  say "etcd: stopped (pid $pid)"
  exit 0
fi
[[ $# -eq 0 ]] || fail "usage: script/launch_etcd.sh [stop]" 2

if pid="$(our_etcd)"; then
  say "etcd: runs already (pid $pid)"
  exit 0
fi
command -v etcd >/dev/null || fail "etcd is not installed: apt-get install etcd-server etcd-client" 78
mkdir -p -- "$SVC_LOGS"
(umask 077 && mkdir -p -- "$ETCD_DATA_DIR")
chmod 700 -- "$ETCD_DATA_DIR"
(
  # etcd takes every ETCD_… variable for a setting of its own.
  exec env -u ETCD_PORT -u ETCD_PEER_PORT -u ETCD_WAIT_TIMEOUT -u ETCD_DATA_DIR SVC_LAUNCHED="$SVC_ROOT:etcd" \
    setsid etcd --name inference-svc --data-dir "$ETCD_DATA_DIR" --auto-compaction-retention=1h \
    --listen-client-urls "$url" --advertise-client-urls "$url" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "inference-svc=$peer"
) </dev/null >>"$log" 2>&1 &
pid=$!
printf '%s\n' "$pid" >"$pid_file"
say "etcd: starting on port $ETCD_PORT (pid $pid, log ${log#"$SVC_ROOT"/})"
deadline=$((SECONDS + ETCD_WAIT_TIMEOUT))
until answers; do
  if has_ended "$pid" || ((SECONDS >= deadline)); then
    kill -TERM "$pid" 2>/dev/null || true
    rm -f -- "$pid_file"
    warn "--- last lines of ${log#"$SVC_ROOT"/}:"
    tail -n 15 -- "$log" | sed 's/^/    /' >&2
    fail "etcd does not answer on $url"
  fi
  sleep 0.1
done
say "etcd: ready. Each registry that shares it: SVC_REGISTRY_STORE=etcd://127.0.0.1:$ETCD_PORT script/launch_registry.sh"

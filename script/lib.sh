#!/usr/bin/env bash
# shellcheck shell=bash
# What the scripts share: where things are, how a process is started, recognised, awaited and stopped.
#
# A process is recognised by its pid file AND by what /proc tells of that pid: the module it runs and the marker that
# start() put into its environment. A pid file alone proves nothing: pids are used again, and a stranger must never be
# killed. (Start times would need a second file beside each pid file, which deployed scripts read as "just the pid".)

set -euo pipefail

SVC_ROOT="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
SVC_LOGS="$SVC_ROOT/logs"
SVC_VENV="${SVC_VENV:-$SVC_ROOT/.venv}"
[[ $SVC_VENV == /* ]] || SVC_VENV="$PWD/$SVC_VENV" # as the caller sees it; we work in other folders
SVC_PYTHON="$SVC_VENV/bin/python"
SVC_LOG_LIMIT_BYTES=$((64 * 1024 * 1024)) # a log larger than this is put aside before the next start
SVC_TAIL_LINES=15
# shellcheck disable=SC2034 # read by the scripts that source this file
SVC_EXIT_PARTLY=3 # common/exits.py: PARTLY
# A babysitter lets its server drain (30 s) and end (30 s) before it ends itself.
SVC_STOP_TIMEOUT_S="${STOP_TIMEOUT:-90}"

say() { printf '%s\n' "$*"; }
warn() { printf '%s\n' "$*" >&2; }

# fail MESSAGE [EXIT-CODE]: tell what is wrong, and end.
fail() {
  warn "error: $1"
  exit "${2:-1}"
}

# packages: print the folder of our packages: the tree; in an image, whose tree has none, where they are installed.
packages() {
  if [[ -d $SVC_ROOT/common ]]; then
    printf '%s\n' "$SVC_ROOT"
  else
    "$SVC_PYTHON" -P -c 'import inference_svc; print(inference_svc.ROOT)'
  fi
}

# helper COMMAND ARGS…: script/helper.py under the project's Python.
helper() { (cd "$SVC_ROOT" && PYTHONPATH="$(packages)" "$SVC_PYTHON" -P script/helper.py "$@"); }

# require_number NAME: the variable NAME, where set, is a number.
require_number() {
  local value="${!1:-}"
  [[ -z $value || $value =~ ^[0-9]+([.][0-9]+)?$ ]] || fail "$1 must be a number, not '$value'" 78
}

# require_whole_number NAME: the variable NAME, where set, is a whole number (of seconds, for bash's own arithmetic).
require_whole_number() {
  local value="${!1:-}"
  [[ -z $value || $value =~ ^[0-9]{1,9}$ ]] || fail "$1 must be a whole number, not '$value'" 78
}

# require_port NAME: the variable NAME is a port.
require_port() {
  local value="${!1:-}"
  [[ $value != tcp://* ]] || fail "$1 is '$value': Kubernetes sets such a variable for each Service, here for one named \
'$(printf '%s' "${1%_PORT}" | tr '[:upper:]_' '[:lower:]-')'. Set enableServiceLinks: false in the pod, or $1 yourself." 78
  if [[ ! $value =~ ^[0-9]{1,5}$ ]] || ((10#$value < 1 || 10#$value > 65535)); then
    fail "$1 must be a port (1 to 65535), not '$value'" 78
  fi
}

# is_true NAME DEFAULT: the switch NAME is on.
is_true() {
  local value="${!1:-$2}"
  case "${value,,}" in
    true | 1 | yes | on) return 0 ;;
    false | 0 | no | off) return 1 ;;
    *) fail "$1 must be true or false, not '$value'" 78 ;;
  esac
}

# find_config NAME: print the path of a configuration: as given, then under the project, then under config/.
find_config() {
  local candidate
  for candidate in "$1" "$SVC_ROOT/$1" "$SVC_ROOT/config/$1" "$SVC_ROOT/config/$1.toml"; do
    if [[ -f $candidate ]]; then
      realpath -- "$candidate"
      return 0
    fi
  done
  return 1
}

require_whole_number STOP_TIMEOUT

# --- processes -------------------------------------------------------------------------------------------------------

pid_file() { printf '%s/%s.pid\n' "$SVC_LOGS" "$1"; }
log_of() { printf '%s/%s.log\n' "$SVC_LOGS" "${1%%_*}_$2"; } # registry 18000 → logs/registry_18000.log

# module_of NAME: babysitter_8001 → babysitter
module_of() {
  case "$1" in
    agent) printf 'babysitter.agent\n' ;;
    *) printf '%s\n' "${1%%_*}" ;;
  esac
}

# environment_of PID NAME: print the value of a variable in the environment of a process.
environment_of() {
  local entry
  while IFS= read -r -d '' entry; do
    if [[ $entry == "$2="* ]]; then
      printf '%s\n' "${entry#*=}"
      return 0
    fi
  done 2>/dev/null <"/proc/$1/environ"
  return 1
}

# is_ours NAME PID: PID is the process that this project started as NAME.
is_ours() {
  local name=$1 pid=$2 marker words
  [[ $pid =~ ^[1-9][0-9]*$ && -r /proc/$pid/environ ]] || return 1
  marker="$(environment_of "$pid" SVC_LAUNCHED)" || return 1
  [[ $marker == "$SVC_ROOT:$name" ]] || return 1
  # The marker is inherited by children (a router's workers); the module is not. A zombie has no command line.
  words="$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline")" || return 1
  [[ $words == *" -m $(module_of "$name") "* ]]
}

# pid_of NAME: print the pid of NAME if it runs and is ours.
pid_of() {
  local file pid=""
  file="$(pid_file "$1")"
  [[ -f $file ]] || return 1
  read -r pid <"$file" || true
  is_ours "$1" "$pid" || return 1
  printf '%s\n' "$pid"
}

# told_of NAME: what start() was told of a running process, as "PORT URL LABEL".
told_of() { environment_of "$(pid_of "$1")" SVC_LAUNCHED_AS; }

# known_processes PREFIX: names that have a pid file and whose process is ours.
known_processes() {
  local file name
  for file in "$SVC_LOGS/$1"*.pid; do
    [[ -f $file ]] || continue
    name="$(basename -- "$file" .pid)"
    if pid_of "$name" >/dev/null; then printf '%s\n' "$name"; fi
  done
}

# start NAME PORT URL LABEL ARGS…: start `python -m MODULE ARGS…` detached; it answers HTTP at URL. Leaves the pid file,
# and in STARTED_PID[NAME] and LOG_FROM[NAME] the pid and the size of the log before the start.
declare -A STARTED_PID=() LOG_FROM=()
start() {
  local name=$1 port=$2 told="$2 $3 $4" log
  log="$(log_of "$name" "$port")"
  shift 4
  mkdir -p -- "$SVC_LOGS"
  if [[ -f $log ]] && (($(stat -c %s -- "$log") > SVC_LOG_LIMIT_BYTES)); then mv -f -- "$log" "$log.1"; fi
  touch -- "$log"
  LOG_FROM[$name]="$(stat -c %s -- "$log")"
  # A session of its own and no terminal: closing the terminal ends nothing. Our locks (fd 8 and 9) stay here.
  (
    cd "$SVC_ROOT"
    export SVC_LAUNCHED="$SVC_ROOT:$name" SVC_LAUNCHED_AS="$told"
    # Our modules, not namesakes in the caller's PYTHONPATH, which is kept for servers (common/own_python.py).
    SUITE_GIVEN_PYTHONPATH="${SUITE_GIVEN_PYTHONPATH-${PYTHONPATH:-}}"
    PYTHONPATH="$(packages)"
    export SUITE_GIVEN_PYTHONPATH PYTHONPATH
    exec setsid "$SVC_PYTHON" -P -m "$(module_of "$name")" "$@"
  ) </dev/null >>"$log" 2>&1 8>&- 9>&- &
  STARTED_PID[$name]=$!
  printf '%s\n' "$!" >"$(pid_file "$name")"
  # Until Python has taken the place of this shell's fork, nobody could recognise it.
  until is_ours "$name" "$!" || has_ended "$!"; do sleep 0.01; done
}

# has_ended PID: no such process, or a zombie.
has_ended() {
  local stat=""
  read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
  [[ ${stat##*) } == Z* ]]
}

# show_log_tail NAME PORT: what NAME logged since this run started it, the last lines.
show_log_tail() {
  local log
  log="$(log_of "$1" "$2")"
  warn "--- last lines of ${log#"$SVC_ROOT"/}:"
  tail -c "+$((${LOG_FROM[$1]:-0} + 1))" -- "$log" | tail -n "$SVC_TAIL_LINES" | sed 's/^/    /' >&2
}

# try NAME PORT TIMEOUT-S CHECK…: wait until `helper wait` finds NAME, which runs as pid, ready. Returns 0, or 1 when the
# time is up; when the process ended or says that it has failed, tells so and returns 2, with its exit code in ENDED_WITH.
ENDED_WITH=1
try() {
  local name=$1 port=$2 timeout_s=$3 pid status=0
  shift 3
  pid="${STARTED_PID[$name]:-$(pid_of "$name" || true)}"
  helper wait "$name" "${pid:-0}" "$timeout_s" "$@" || status=$?
  ENDED_WITH=1
  ((status > 1)) || return "$status"
  show_log_tail "$name" "$port"
  if ((status == 2)); then
    if [[ -n ${STARTED_PID[$name]:-} ]]; then wait "$pid" 2>/dev/null || ENDED_WITH=$?; fi
    rm -f -- "$(pid_file "$name")"
    warn "error: $name ended while it was starting (exit code $ENDED_WITH)"
  else
    warn "error: $name has failed to start"
  fi
  return 2
}

# await NAME PORT TIMEOUT-S CHECK…: the same, and ends the script (with the process's exit code) instead of returning 2.
await() {
  local status=0
  try "$@" || status=$?
  ((status < 2)) || exit "$ENDED_WITH"
  return "$status"
}

# stop_processes TIMEOUT-S NAME…: end processes that are ours: SIGTERM to all, then wait, then SIGKILL what remains.
stop_processes() {
  local timeout_s=$1 name pid deadline stopped=0
  local -A waiting=()
  shift
  for name in "$@"; do
    if pid="$(pid_of "$name")"; then
      kill -TERM "$pid" 2>/dev/null || true
      waiting[$name]=$pid
    else
      say "$name: not running"
    fi
  done
  deadline=$((SECONDS + timeout_s))
  while ((${#waiting[@]} > 0)); do
    for name in "${!waiting[@]}"; do
      pid=${waiting[$name]}
      if is_ours "$name" "$pid"; then
        ((SECONDS < deadline)) && continue
        warn "$name: pid $pid did not end within ${timeout_s} s; killing it"
        kill -KILL "$pid" 2>/dev/null || true
        stopped=1
      else
        say "$name: stopped (pid $pid)"
      fi
      rm -f -- "$(pid_file "$name")"
      unset "waiting[$name]"
    done
    ((${#waiting[@]} == 0)) || sleep 0.1
  done
  return "$stopped"
}

# --- launching -------------------------------------------------------------------------------------------------------

STARTED=() # what this run started, in order

# prepare: the Python environment, and one launch at a time in this folder; what this run starts ends if it fails.
prepare() {
  SVC_COMPILE="${SVC_COMPILE:-new}" "$SVC_ROOT/script/setup.sh" run
  if compgen -e SVC_ | grep -qvxE 'SVC_(VENV|SETUP|COMPILE|PYTHON_FOR_VENV)'; then helper variables; fi
  mkdir -p -- "$SVC_LOGS" || true
  [[ -d $SVC_LOGS && -w $SVC_LOGS && -x $SVC_LOGS ]] || fail "$SVC_LOGS cannot be written by user $(id -u): \
it belongs to user $(stat -c %u -- "$SVC_LOGS" 2>/dev/null || echo "of nobody: it cannot be made").
  Have it belong to that user; in a container, run as the folder's owner: --user \"\$(id -u):\$(id -g)\"" 78
  exec 9<"$SVC_LOGS"
  if command -v flock >/dev/null; then
    flock -w 600 9 || fail "another launch in $SVC_ROOT has not ended for ten minutes"
  fi
  trap 'undo $?' EXIT
  trap 'exit 130' INT TERM
}

# undo STATUS: after a failure, stop what this run started, the latest first.
undo() {
  trap - EXIT INT TERM
  local index names=()
  if (($1 != 0)); then
    for ((index = ${#STARTED[@]} - 1; index >= 0; index--)); do
      if pid_of "${STARTED[index]}" >/dev/null; then names+=("${STARTED[index]}"); fi
    done
  fi
  if ((${#names[@]} > 0)); then
    warn "stopping what this run started"
    stop_processes "$SVC_STOP_TIMEOUT_S" "${names[@]}" >&2 || true
  fi
  exit "$1"
}

# flags_from [FLAG VARIABLE]…: leave in FLAGS each flag whose variable is set, with its value.
flags_from() {
  FLAGS=()
  while (($# > 0)); do
    if [[ -n ${!2:-} ]]; then FLAGS+=("$1" "${!2}"); fi
    shift 2
  done
}

# none_is_empty: in FLAGS, the value "none" becomes nothing, which stands over what a file says.
none_is_empty() {
  local index
  for index in "${!FLAGS[@]}"; do
    if [[ ${FLAGS[index]} == none ]]; then FLAGS[index]=""; fi
  done
}

# start_once NAME PORT URL LABEL ARGS…: start NAME unless it runs already.
start_once() {
  local name=$1 port=$2 pid running_port
  if pid="$(pid_of "$name")"; then
    running_port="$(told_of "$name")"
    running_port="${running_port%% *}"
    [[ $running_port == "$port" ]] ||
      fail "$name already runs on port $running_port (pid $pid), not on $port; stop it first: ./script/stop_${name%%_*}.sh"
    say "$name: runs already on port $port (pid $pid)"
    return
  fi
  start "$@"
  STARTED+=("$name")
  say "$name: starting on port $port (pid ${STARTED_PID[$name]}, log ${SVC_LOGS#"$SVC_ROOT"/}/${name%%_*}_$port.log)"
}

# local_url HOST PORT: where this machine reaches a server that listens on HOST.
local_url() {
  case "${1:-}" in
    '' | localhost | 0.0.0.0 | ::) printf 'http://127.0.0.1:%s\n' "$2" ;;
    *:*) printf 'http://[%s]:%s\n' "$1" "$2" ;;
    *) printf 'http://%s:%s\n' "$1" "$2" ;;
  esac
}

# babysitter_url HOST PORT: where this machine reaches the babysitter of a server at HOST:PORT. It answers on loopback,
# whatever it announces, unless HOST is a loopback address of its own.
babysitter_url() {
  case "${1:-}" in
    127.* | ::1) local_url "$1" "$(($2 + 1))" ;;
    *) local_url "" "$(($2 + 1))" ;;
  esac
}

# announce HOST: leave in FLAGS how a babysitter whose file says HOST is told BABYSITTER_HOST, which is announced. A
# server that listens everywhere goes on doing so.
announce() {
  case "$1" in
    0.0.0.0 | ::) flags_from --advertise-host BABYSITTER_HOST ;;
    *) flags_from --host BABYSITTER_HOST ;;
  esac
}

# registry_url: where this machine reaches the registry that these scripts launch.
registry_url() {
  if [[ -n ${REGISTRY_HOST:-} ]]; then
    local_url "$REGISTRY_HOST" "${REGISTRY_PORT:-18000}"
  else
    printf 'http://localhost:%s\n' "${REGISTRY_PORT:-18000}"
  fi
}

launch_registry() {
  local url
  url="$(local_url "${REGISTRY_HOST:-}" "$REGISTRY_PORT")"
  start_once registry "$REGISTRY_PORT" "$url" registry --port "$REGISTRY_PORT" "${REGISTRY_FLAGS[@]}"
  await registry "$REGISTRY_PORT" "$REGISTRY_WAIT_TIMEOUT" url "$url/health" ||
    { show_log_tail registry "$REGISTRY_PORT"; fail "the registry did not answer in time"; }
  say "registry: ready"
}

# registry_settings: read and check the registry's variables.
registry_settings() {
  REGISTRY_PORT="${REGISTRY_PORT:-18000}"
  REGISTRY_WAIT_TIMEOUT="${REGISTRY_WAIT_TIMEOUT:-30}"
  require_port REGISTRY_PORT
  local name
  for name in REGISTRY_HEALTH_INTERVAL REGISTRY_HEALTH_TIMEOUT REGISTRY_CLEANUP_INTERVAL REGISTRY_WAIT_TIMEOUT; do
    require_number "$name"
  done
  flags_from --host REGISTRY_HOST --health-interval REGISTRY_HEALTH_INTERVAL --health-timeout REGISTRY_HEALTH_TIMEOUT \
    --cleanup-interval REGISTRY_CLEANUP_INTERVAL
  REGISTRY_FLAGS=("${FLAGS[@]}")
}

launch_agent() {
  local url
  url="$(local_url "$AGENT_HOST" "$AGENT_PORT")"
  start_once agent "$AGENT_PORT" "$url" agent --port "$AGENT_PORT" --host "$AGENT_HOST" "${AGENT_FLAGS[@]}"
  await agent "$AGENT_PORT" "$AGENT_WAIT_TIMEOUT" url "$url/health" ||
    { show_log_tail agent "$AGENT_PORT"; fail "the agent did not answer in time"; }
  say "agent: ready"
}

# agent_settings: read and check the agent's variables. A plain HOST or PORT is for one that is started by hand.
agent_settings() {
  AGENT_PORT="${AGENT_PORT:-18100}"
  AGENT_HOST="${AGENT_HOST:-127.0.0.1}"
  AGENT_WAIT_TIMEOUT="${AGENT_WAIT_TIMEOUT:-30}"
  AGENT_REGISTRY_URL="${AGENT_REGISTRY_URL:-$(registry_url)}"
  require_port AGENT_PORT
  require_number AGENT_WAIT_TIMEOUT
  flags_from --registry-url AGENT_REGISTRY_URL --node AGENT_NODE --babysitter-config AGENT_BABYSITTER_CONFIG
  none_is_empty
  AGENT_FLAGS=("${FLAGS[@]}")
}

launch_router() {
  local url
  url="$(local_url "${ROUTER_HOST:-}" "$ROUTER_PORT")"
  start_once router "$ROUTER_PORT" "$url" router --router-port "$ROUTER_PORT" "${ROUTER_FLAGS[@]}"
  await router "$ROUTER_PORT" "$ROUTER_WAIT_TIMEOUT" url "$url/health" ||
    { show_log_tail router "$ROUTER_PORT"; fail "the router did not answer in time"; }
  say "router: ready"
}

# router_settings: read and check the router's variables.
router_settings() {
  ROUTER_PORT="${ROUTER_PORT:-8000}"
  ROUTER_REGISTRY_URL="${ROUTER_REGISTRY_URL:-$(registry_url)}"
  ROUTER_WAIT_TIMEOUT="${ROUTER_WAIT_TIMEOUT:-30}"
  require_port ROUTER_PORT
  local name
  for name in ROUTER_HEALTH_INTERVAL ROUTER_HEALTH_TIMEOUT ROUTER_REGISTRY_SYNC_INTERVAL ROUTER_MAX_ERRORS \
    ROUTER_SERVICE_REMOVAL_GRACE_PERIOD ROUTER_WAIT_TIMEOUT; do
    require_number "$name"
  done
  flags_from --host ROUTER_HOST --registry-url ROUTER_REGISTRY_URL --health-interval ROUTER_HEALTH_INTERVAL --health-timeout ROUTER_HEALTH_TIMEOUT \
    --registry-sync-interval ROUTER_REGISTRY_SYNC_INTERVAL --max-errors ROUTER_MAX_ERRORS \
    --service-removal-grace-period ROUTER_SERVICE_REMOVAL_GRACE_PERIOD --static-services ROUTER_STATIC_SERVICES
  none_is_empty
  ROUTER_FLAGS=("${FLAGS[@]}")
  if is_true ROUTER_EXPOSE_REPLICA_API false; then ROUTER_FLAGS+=(--expose-replica-api); fi
}

# babysitter_settings: read and check the variables that every babysitter shares.
babysitter_settings() {
  BABYSITTER_WAIT_TIMEOUT="${BABYSITTER_WAIT_TIMEOUT:-60}"
  require_number BABYSITTER_WAIT_TIMEOUT
  flags_from --registry-url BABYSITTER_REGISTRY_URL --router-url BABYSITTER_ROUTER_URL
  none_is_empty
  # shellcheck disable=SC2034 # read by the scripts that source this file
  BABYSITTER_FLAGS=("${FLAGS[@]}")
  # Which accelerators the servers may see; a sourced script may have them unexported.
  if [[ -n ${HPCC_VISIBLE_DEVICES:-} ]]; then export HPCC_VISIBLE_DEVICES; fi
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then export CUDA_VISIBLE_DEVICES; fi
}

# await_babysitter NAME PORT URL: wait for its server. Returns 0 when it is ready, 1 when it is still loading as the time
# is up, which it is left to do, 2 when it does not run.
await_babysitter() {
  local name=$1 port=$2 url=$3 own_s=30 status=0
  # The babysitter itself is up in a moment; only its server may be given less time than a slow machine needs for that.
  if ((${BABYSITTER_WAIT_TIMEOUT%%.*} > own_s)); then own_s=$BABYSITTER_WAIT_TIMEOUT; fi
  try "$name" "$port" "$own_s" url "$url/health" || status=$?
  if ((status == 1)); then
    show_log_tail "$name" "$port"
    warn "error: $name did not answer in time"
  fi
  ((status == 0)) || return 2
  try "$name" "$port" "$BABYSITTER_WAIT_TIMEOUT" server "$url" || status=$?
  case $status in
    0) say "$name: ready" ;;
    1) warn "$name: its server is still starting: a large model may take long, but a reason that stays the same does not \
go away by itself; look again with ./script/status.sh" ;;
  esac
  return "$status"
}

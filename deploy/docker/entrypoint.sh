#!/usr/bin/env bash
# Launch the node and stay in the foreground: ends with the node at SIGTERM, and by itself when the registry, the router or
# the agent ends. A babysitter that ends is launched again. With words, run them instead: entrypoint.sh svc-registry --port 18000
#
#   LAUNCH_COMPONENTS     all (the default, with the agent), none, or a comma list of registry, router, babysitter, agent
#   REGISTRY_URL, ROUTER_URL   where those are that are not launched here; empty: none
#   BABYSITTER_CONFIGS    files by blanks; without it, every babysitter's file in /app/config
# and every variable of script/launch_all.sh (README.md).

# A read-only container without a tmpfs: what is to be written goes where a volume is.
if [[ ! -w ${TMPDIR:-/tmp} ]]; then export TMPDIR=/app/data; fi
if (($#)); then exec "$@"; fi

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../../script/lib.sh"

SVC_EXIT_PARTLY=3 # common/exits.py: PARTLY

# is_true NAME: the switch NAME, which is on unless it says otherwise.
is_true() {
  local value="${!1:-true}"
  [[ ! ${value,,} =~ ^(false|0|no|off)$ ]] # what is no switch at all the launch tells
}

# read_components: LAUNCH_COMPONENTS as launch_all.sh's own switches.
read_components() {
  local word wanted="${LAUNCH_COMPONENTS,,}" part
  local -a words=()
  IFS=', ' read -r -a words <<<"$wanted"
  for part in REGISTRY ROUTER BABYSITTER AGENT; do declare -g "LAUNCH_$part=false"; done
  for word in "${words[@]}"; do
    case "$word" in
      all) LAUNCH_REGISTRY=true LAUNCH_ROUTER=true LAUNCH_BABYSITTER=true LAUNCH_AGENT=true ;;
      registry | router | babysitter | agent) declare -g "LAUNCH_${word^^}=true" ;;
      none) ;;
      *) fail "LAUNCH_COMPONENTS: '$word' is none of all, none, registry, router, babysitter, agent" 78 ;;
    esac
  done
  export LAUNCH_REGISTRY LAUNCH_ROUTER LAUNCH_BABYSITTER LAUNCH_AGENT
}

# read_urls: whom to follow, where it is not launched here.
read_urls() {
  local here
  if is_true LAUNCH_REGISTRY; then
    export REGISTRY_PORT="${REGISTRY_PORT:-18000}" # so it is everybody's, whatever a file says
  else
    here="${REGISTRY_URL:-none}"
    [[ $here != none ]] || say "REGISTRY_URL names no registry and none is launched here: servers are not reported to any"
    export BABYSITTER_REGISTRY_URL="${BABYSITTER_REGISTRY_URL:-$here}" ROUTER_REGISTRY_URL="${ROUTER_REGISTRY_URL:-$here}"
    export AGENT_REGISTRY_URL="${AGENT_REGISTRY_URL:-$here}"
  fi
  if is_true LAUNCH_ROUTER; then
    here="http${SVC_TLS_CERT_FILE:+s}://127.0.0.1:${ROUTER_PORT:-8000}"
  else
    here="${ROUTER_URL:-none}"
  fi
  export BABYSITTER_ROUTER_URL="${BABYSITTER_ROUTER_URL:-$here}"
}

# read_own_configs: with a config/ that is not the image's own, BABYSITTER_CONFIGS is what is in it.
read_own_configs() {
  local -a found=() named=()
  [[ ${BABYSITTER_CONFIGS:-} =~ ^[[:space:]()]*$ ]] || return 0
  mapfile -t found < <(cd "$SVC_ROOT/config" 2>/dev/null && ls -A)
  mapfile -t named < <(cd "$SVC_ROOT/config" 2>/dev/null && grep -lsE '^[[:space:]]*\[backend\]' -- *.toml)
  if ((${#named[@]} == 0)); then
    fail "BABYSITTER_CONFIGS names no file, and $SVC_ROOT/config has none with a [backend]; in it: ${found[*]:-nothing}" 78
  fi
  [[ ${named[*]} != "babysitter1.toml babysitter2.toml" ]] || return 0 # launch_all.sh takes these, and says so
  export BABYSITTER_CONFIGS="${named[*]}"
  say "BABYSITTER_CONFIGS names no file: what is in $SVC_ROOT/config is started: $BABYSITTER_CONFIGS"
}

if [[ -n ${LAUNCH_COMPONENTS:-} ]]; then read_components; fi
read_urls
if is_true LAUNCH_BABYSITTER; then read_own_configs; fi

# A signal may come while a call below is redirected, and the trap would inherit that.
exec 7>&1
finish() {
  local stopped=0
  trap - TERM INT
  "$SVC_ROOT/script/stop_all.sh" >&7 || stopped=$?
  exit "$(($1 != 0 ? $1 : stopped))" # why it ends matters more than how the rest of it ended
}
trap 'finish 0' TERM INT

# launch_node: in the background, so that a signal is heard at once and not after the launch. Returns its exit code, and leaves
# in `launched` the pid files of what runs.
launch_node() {
  local status=0
  "$SVC_ROOT/script/launch_all.sh" 7>&- &
  wait $! || status=$?
  mapfile -t launched < <(compgen -G "$SVC_LOGS/*.pid")
  return "$status"
}

# Pid files of an earlier container, in a logs/ that outlived it, mean nothing here.
rm -f -- "$SVC_LOGS"/*.pid || true # a folder that cannot be entered is told by the launch
status=0
launch_node || status=$?
((status == 0 || status == SVC_EXIT_PARTLY)) || finish "$status" # a server that cannot start ends nothing
pause_s=10
again_at=""
while true; do
  for file in "${launched[@]}"; do
    name="$(basename -- "$file" .pid)"
    pid=""
    read -r pid 2>/dev/null <"$file" || true
    has_ended "$pid" || continue
    warn "$name has ended; see its log in $SVC_LOGS"
    [[ $name == babysitter_* ]] || finish 1
    again_at=$((SECONDS + pause_s))
    mapfile -t launched < <(printf '%s\n' "${launched[@]}" | grep -vxF -- "$file")
  done
  if [[ -n $again_at ]] && ((SECONDS >= again_at)); then
    again_at=""
    pause_s=$((pause_s < 300 ? pause_s * 2 : pause_s))
    launch_node || true # it has said why; what runs goes on
  fi
  sleep 1 7>&- &
  wait $! || true
done

#!/usr/bin/env bash
# Launch a node: registry, router, agent, and one babysitter for each configuration. README.md lists every variable.
#
#   ./script/launch_all.sh
#   BABYSITTER_CONFIGS="qwen.toml config/9g8b.toml" ROUTER_PORT=8080 ./script/launch_all.sh
#   BABYSITTER_CONFIGS=(qwen.toml 9g8b.toml); source script/launch_all.sh     # bash exports no arrays
#
# Safe to run again: what runs already is left alone. If the registry, the router or the agent cannot start, what this run
# started is stopped again. A server that cannot start takes nothing else down: the exit code is then 3, and stderr says
# which one it is. Exit code 78: nothing was started, for a variable or every file of a server is wrong.

# In a subshell: where this file is sourced, the caller's shell keeps its options and is not ended.
(
  # shellcheck source=script/lib.sh
  . "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

  # read_configs: leave in WANTED the names in BABYSITTER_CONFIGS (an array, or words), or say which files are taken
  # because it names none: bash exports no arrays, so one that was exported comes as nothing, or as "()".
  declare -a WANTED=()
  DEFAULT_CONFIGS=(babysitter1.toml babysitter2.toml)
  read_configs() {
    local text
    if [[ "$(declare -p BABYSITTER_CONFIGS 2>/dev/null)" == "declare -a"* ]]; then
      WANTED=("${BABYSITTER_CONFIGS[@]}")
    else
      text="${BABYSITTER_CONFIGS:-}"
      if [[ $text == "("*")" ]]; then text="${text:1:-1}"; fi
      read -r -d '' -a WANTED <<<"${text//\"/}" || true
    fi
    ((${#WANTED[@]} == 0)) || return 0
    WANTED=("${DEFAULT_CONFIGS[@]}")
    say "BABYSITTER_CONFIGS names no file, so config/${DEFAULT_CONFIGS[0]} and ${DEFAULT_CONFIGS[1]} are started, which are" \
      "mock servers as they come. For yours: BABYSITTER_CONFIGS=\"a.toml b.toml\" ./script/launch_all.sh (one string:" \
      "bash exports no arrays)"
  }

  # resolve_configs: fill FILES, PORTS, HOSTS (as the files say), URLS (of the babysitters) and LABELS. A file that is of
  # no use is told, and goes into LEFT_OUT; when every one of them is, nothing is started.
  declare -a FILES=() PORTS=() HOSTS=() URLS=() LABELS=() LEFT_OUT=()
  resolve_configs() {
    local -A holder=()
    local name file told port host label
    if is_true LAUNCH_REGISTRY true; then holder[$REGISTRY_PORT]="the registry"; fi
    if is_true LAUNCH_ROUTER true; then holder[$ROUTER_PORT]="the router"; fi
    if is_true LAUNCH_AGENT true; then holder[$AGENT_PORT]="the agent"; fi
    read_configs
    for name in "${WANTED[@]}"; do
      LEFT_OUT+=("$name") # until it has proved to be of use
      if ! file="$(find_config "$name")"; then
        warn "error: BABYSITTER_CONFIGS: there is no file '$name' here, under $SVC_ROOT or under $SVC_ROOT/config"
        continue
      fi
      told="$(helper config "$file")" || continue
      read -r port host label <<<"$told"
      if ports_are_free "$file" "$port" "$((port + 1))"; then
        LEFT_OUT=("${LEFT_OUT[@]:0:${#LEFT_OUT[@]}-1}")
        FILES+=("$file")
        PORTS+=("$port")
        HOSTS+=("$host")
        URLS+=("$(babysitter_url "${BABYSITTER_HOST:-$host}" "$port")")
        LABELS+=("$label")
      fi
    done
    ((${#FILES[@]} > 0)) || exit 78
  }

  # ports_are_free FILE PORT…: nothing else of this launch has them; they are FILE's from now on. Uses `holder` of its
  # caller.
  ports_are_free() {
    local file=$1 port
    shift
    for port in "$@"; do
      if [[ -n ${holder[$port]:-} ]]; then
        warn "error: $file needs port $port, which is for ${holder[$port]}"
        return 1
      fi
    done
    for port in "$@"; do holder[$port]="$file"; done
  }

  # print_next_steps URL-OF-ROUTER: what to try now.
  print_next_steps() {
    local model shown
    shown="${1/127.0.0.1/localhost}"
    say $'\nThe node runs. Try:'
    if is_true LAUNCH_REGISTRY true; then
      say "  curl $(registry_url)/health"
      say "  curl $(registry_url)/services"
    fi
    if is_true LAUNCH_ROUTER true; then
      say "  curl $shown/health"
      say "  curl $shown/models"
      while IFS= read -r model; do
        say "  curl -N $shown/chat/completions -H 'Content-Type: application/json' \\"
        say "    -d '{\"model\": \"$model\", \"stream\": true, \"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'"
      done < <(helper models "$1" 2>/dev/null || true)
    fi
    if is_true LAUNCH_AGENT true; then say "  curl $(local_url "$AGENT_HOST" "$AGENT_PORT")/api/v1/replicas"; fi
    say "Status: ./script/status.sh    Stop: ./script/stop_all.sh    Logs: ${SVC_LOGS#"$SVC_ROOT"/}/"
  }

  # launch_babysitters: start and await those of FILES; LOADED has the URLs of those whose servers are ready, LOADING
  # counts those that still load, LEFT_OUT has more names of those that do not run.
  declare -a LOADED=()
  declare -i LOADING=0
  launch_babysitters() {
    local index status
    for index in "${!FILES[@]}"; do
      announce "${HOSTS[index]}"
      start_once "babysitter_${PORTS[index]}" "${PORTS[index]}" "${URLS[index]}" "${LABELS[index]}" \
        --config-file "${FILES[index]}" "${BABYSITTER_FLAGS[@]}" "${FLAGS[@]}"
    done
    for index in "${!FILES[@]}"; do
      status=0
      await_babysitter "babysitter_${PORTS[index]}" "${PORTS[index]}" "${URLS[index]}" || status=$?
      case $status in
        0) LOADED+=("${URLS[index]}") ;;
        1) ((LOADING += 1)) ;;
        2) LEFT_OUT+=("${LABELS[index]} (port ${PORTS[index]})") ;;
      esac
    done
  }

  main() {
    local router_url
    # Babysitters follow a registry placed here; otherwise the registry_url of their file holds.
    if [[ -n ${REGISTRY_HOST:-}${REGISTRY_PORT:-} ]]; then
      BABYSITTER_REGISTRY_URL="${BABYSITTER_REGISTRY_URL:-$(registry_url)}"
    fi
    registry_settings
    router_settings
    agent_settings
    babysitter_settings
    prepare
    if is_true LAUNCH_BABYSITTER true; then resolve_configs; fi

    if is_true LAUNCH_REGISTRY true; then launch_registry; fi
    if is_true LAUNCH_ROUTER true; then launch_router; fi
    if is_true LAUNCH_AGENT true; then launch_agent; fi
    launch_babysitters
    if ! is_true LAUNCH_REGISTRY true && ! is_true LAUNCH_ROUTER true && ! is_true LAUNCH_AGENT true &&
      ((${#LEFT_OUT[@]} > 0 && ${#LOADED[@]} + LOADING == 0)); then
      exit "$ENDED_WITH" # nothing of this launch runs
    fi
    router_url="$(local_url "${ROUTER_HOST:-}" "$ROUTER_PORT")"
    if is_true LAUNCH_ROUTER true && ((${#LOADED[@]} > 0)); then
      await router "$ROUTER_PORT" "$ROUTER_WAIT_TIMEOUT" routed "$router_url" "${LOADED[@]}" ||
        warn "router: it does not route to every server yet; do the babysitters and the router use the same registry?"
    fi
    print_next_steps "$router_url"
    if ((${#LEFT_OUT[@]} > 0)); then
      warn "error: not running: $(printf '%s, ' "${LEFT_OUT[@]}" | sed 's/, $//'). Everything else goes on; mend it (see" \
        "above) and run this again"
      STARTED=() # all of it stays
      exit "$SVC_EXIT_PARTLY"
    fi
  }

  main
)

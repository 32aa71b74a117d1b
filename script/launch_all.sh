#!/usr/bin/env bash
# Launch a node: registry, router, agent, and one babysitter for each configuration. README.md lists every variable.
#
#   ./script/launch_all.sh
#   BABYSITTER_CONFIGS="qwen.toml config/9g8b.toml" ROUTER_PORT=8080 ./script/launch_all.sh
#   BABYSITTER_CONFIGS=(qwen.toml 9g8b.toml); source script/launch_all.sh     # bash exports no arrays
#
# Safe to run again: what runs already is left alone. If anything fails, what this run started is stopped again.

# In a subshell: where this file is sourced, the caller's shell keeps its options and is not ended.
(
  # shellcheck source=script/lib.sh
  . "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

  # resolve_configs: fill FILES, PORTS, URLS (of the babysitters) and LABELS from BABYSITTER_CONFIGS (an array, or
  # words), and refuse what cannot run.
  declare -a FILES=() PORTS=() URLS=() LABELS=()
  resolve_configs() {
    local -a wanted=()
    local -A holder=()
    local name file told port host label taken
    if [[ "$(declare -p BABYSITTER_CONFIGS 2>/dev/null)" == "declare -a"* ]]; then
      wanted=("${BABYSITTER_CONFIGS[@]}")
    else
      read -r -d '' -a wanted <<<"${BABYSITTER_CONFIGS:-babysitter1.toml babysitter2.toml}" || true
    fi
    if is_true LAUNCH_REGISTRY true; then holder[$REGISTRY_PORT]="the registry"; fi
    if is_true LAUNCH_ROUTER true; then holder[$ROUTER_PORT]="the router"; fi
    if is_true LAUNCH_AGENT true; then holder[$AGENT_PORT]="the agent"; fi
    for name in "${wanted[@]}"; do
      file="$(find_config "$name")" ||
        fail "BABYSITTER_CONFIGS: there is no file '$name' here, under $SVC_ROOT or under $SVC_ROOT/config" 78
      told="$(helper config "$file")" || exit 78
      read -r port host label <<<"$told"
      for taken in "$port" "$((port + 1))"; do
        [[ -z ${holder[$taken]:-} ]] || fail "$file needs port $taken, which is for ${holder[$taken]}" 78
        holder[$taken]="$file"
      done
      FILES+=("$file")
      PORTS+=("$port")
      URLS+=("$(local_url "${BABYSITTER_HOST:-$host}" "$((port + 1))")")
      LABELS+=("$label")
    done
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

  main() {
    local index router_url loaded=()
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
    for index in "${!FILES[@]}"; do
      start_once "babysitter_${PORTS[index]}" "${PORTS[index]}" "${URLS[index]}" "${LABELS[index]}" \
        --config-file "${FILES[index]}" "${BABYSITTER_FLAGS[@]}"
    done
    for index in "${!FILES[@]}"; do
      if await_babysitter "babysitter_${PORTS[index]}" "${PORTS[index]}" "${URLS[index]}"; then
        loaded+=("${URLS[index]}")
      fi
    done
    router_url="$(local_url "${ROUTER_HOST:-}" "$ROUTER_PORT")"
    if is_true LAUNCH_ROUTER true && ((${#loaded[@]} > 0)); then
      await router "$ROUTER_PORT" "$ROUTER_WAIT_TIMEOUT" routed "$router_url" "${loaded[@]}" ||
        warn "router: it does not route to every server yet; do the babysitters and the router use the same registry?"
    fi
    print_next_steps "$router_url"
  }

  main
)

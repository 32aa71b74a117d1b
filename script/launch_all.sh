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
  files=()
  if [[ "$(declare -p BABYSITTER_CONFIGS 2>/dev/null)" == "declare -a"* ]]; then
    files=("${BABYSITTER_CONFIGS[@]}")
    unset BABYSITTER_CONFIGS
  fi
  pairs=()
  for name in "${!REGISTRY_@}" "${!ROUTER_@}" "${!AGENT_@}" "${!BABYSITTER_@}" "${!LAUNCH_@}" "${!STOP_@}" \
    HPCC_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES; do
    if [[ -n ${!name:-} ]]; then pairs+=("$name=${!name}"); fi
  done
  prepare
  helper up all "${pairs[@]}" -- "${files[@]}"
)

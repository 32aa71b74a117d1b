#!/usr/bin/env bash
# Launch the node's agent alone, which makes replicas when it is asked to. Variables: AGENT_PORT (18100), AGENT_HOST,
# AGENT_REGISTRY_URL, AGENT_NODE (this node's name), AGENT_BABYSITTER_CONFIG (a file of settings for every babysitter),
# AGENT_WAIT_TIMEOUT; and the agent's own: LOCAL_WORKDIR_ROOT, CLEANUP_ON_SHUTDOWN, CONFIG_FILE … (docs/agent.md).

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
launch agent "${!AGENT_@}" "${!REGISTRY_@}"

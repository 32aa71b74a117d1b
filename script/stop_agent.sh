#!/usr/bin/env bash
# Stop the agent launched from this folder. Its replicas go on, and the next agent adopts them; STOP_REPLICAS=true stops
# them first. STOP_TIMEOUT (90 s) bounds each wait. SVC_AGENT_API_TOKEN_FILE names the agent's token, if it has one.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
stop agent

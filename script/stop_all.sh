#!/usr/bin/env bash
# Stop what was launched from this folder: babysitters with their servers, then the agent, the router, the registry.
# Replicas that the agent made go on, unless STOP_REPLICAS=true.
# STOP_TIMEOUT (90 s) bounds the wait for each of them.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
stop all

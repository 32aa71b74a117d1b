#!/usr/bin/env bash
# Launch the registry alone. Edit the block, or set the variables; also REGISTRY_HOST, REGISTRY_WAIT_TIMEOUT.

# --- configuration; the environment wins -----------------------------------------------------------------------------
REGISTRY_PORT="${REGISTRY_PORT:-18000}"
HEALTH_INTERVAL="${REGISTRY_HEALTH_INTERVAL:-${HEALTH_INTERVAL:-30}}"    # seconds between two probes
HEALTH_TIMEOUT="${REGISTRY_HEALTH_TIMEOUT:-${HEALTH_TIMEOUT:-5}}"        # seconds, of one probe
CLEANUP_INTERVAL="${REGISTRY_CLEANUP_INTERVAL:-${CLEANUP_INTERVAL:-60}}" # seconds between two looks for what has gone
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
REGISTRY_HEALTH_INTERVAL="$HEALTH_INTERVAL"
REGISTRY_HEALTH_TIMEOUT="$HEALTH_TIMEOUT"
REGISTRY_CLEANUP_INTERVAL="$CLEANUP_INTERVAL"
launch registry REGISTRY_PORT "${!REGISTRY_@}"

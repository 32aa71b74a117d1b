#!/usr/bin/env bash
# Launch the router alone. Edit the block, or set the variables; also ROUTER_HOST, ROUTER_SERVICE_REMOVAL_GRACE_PERIOD,
# ROUTER_WAIT_TIMEOUT.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# --- configuration; the environment wins -----------------------------------------------------------------------------
ROUTER_PORT="${ROUTER_PORT:-8000}"
REGISTRY_URL="${ROUTER_REGISTRY_URL:-${REGISTRY_URL-here}}" # here: this node's; empty: none
STATIC_SERVICES="${ROUTER_STATIC_SERVICES:-${STATIC_SERVICES:-${STATIC_SERVICES_FILE:-}}}" # a JSON file
HEALTH_INTERVAL="${ROUTER_HEALTH_INTERVAL:-${HEALTH_INTERVAL:-30}}"    # seconds between two probes
HEALTH_TIMEOUT="${ROUTER_HEALTH_TIMEOUT:-${HEALTH_TIMEOUT:-5}}"        # seconds, of one probe
MAX_ERRORS="${ROUTER_MAX_ERRORS:-${MAX_ERRORS:-3}}"                    # failures until a service is unhealthy
REGISTRY_SYNC_INTERVAL="${ROUTER_REGISTRY_SYNC_INTERVAL:-${REGISTRY_SYNC_INTERVAL:-10}}" # seconds; of an old registry
# ---------------------------------------------------------------------------------------------------------------------

ROUTER_REGISTRY_URL="${REGISTRY_URL:-none}"
if [[ $REGISTRY_URL == here ]]; then ROUTER_REGISTRY_URL=""; fi
ROUTER_STATIC_SERVICES="$STATIC_SERVICES"
ROUTER_HEALTH_INTERVAL="$HEALTH_INTERVAL"
ROUTER_HEALTH_TIMEOUT="$HEALTH_TIMEOUT"
ROUTER_MAX_ERRORS="$MAX_ERRORS"
ROUTER_REGISTRY_SYNC_INTERVAL="$REGISTRY_SYNC_INTERVAL"
launch router "${!REGISTRY_@}" "${!ROUTER_@}"

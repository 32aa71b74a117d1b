#!/usr/bin/env bash
# Launch the router alone. Variables: ROUTER_PORT (8000), ROUTER_HOST, ROUTER_REGISTRY_URL, ROUTER_HEALTH_INTERVAL,
# ROUTER_HEALTH_TIMEOUT, ROUTER_REGISTRY_SYNC_INTERVAL, ROUTER_SERVICE_REMOVAL_GRACE_PERIOD, ROUTER_MAX_ERRORS,
# ROUTER_STATIC_SERVICES (a file), ROUTER_WAIT_TIMEOUT.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
router_settings
prepare
launch_router

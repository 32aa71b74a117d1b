#!/usr/bin/env bash
# Launch the registry alone. Variables: REGISTRY_PORT (18000), REGISTRY_HOST, REGISTRY_HEALTH_INTERVAL,
# REGISTRY_HEALTH_TIMEOUT, REGISTRY_CLEANUP_INTERVAL, REGISTRY_WAIT_TIMEOUT.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
registry_settings
prepare
launch_registry

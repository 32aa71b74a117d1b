#!/usr/bin/env bash
# Stop what was launched from this folder: babysitters with their servers, then the router, then the registry.
# STOP_TIMEOUT (45 s) bounds the wait for each of them.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
"$SVC_ROOT/script/stop_babysitter.sh"
stop_processes "${STOP_TIMEOUT:-45}" router
stop_processes "${STOP_TIMEOUT:-45}" registry

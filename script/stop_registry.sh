#!/usr/bin/env bash
# Stop the registry launched from this folder. STOP_TIMEOUT (90 s) bounds the wait.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
stop registry

#!/usr/bin/env bash
# Stop babysitters launched from this folder, and their servers: script/stop_babysitter.sh [PORT|NAME]; all without one.
# STOP_TIMEOUT (90 s) bounds the wait.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
stop babysitter "$@"

#!/usr/bin/env bash
# launch_babysitter.sh with the values of the 9g8b model. The environment wins here too.
export PORT="${PORT:-8100}"
export SERVICE_TYPE="${SERVICE_TYPE:-InfiniLM}"
export MODEL_PATH="${MODEL_PATH:-/models/9g_8b_thinking}"
export HPCC_VISIBLE_DEVICES="${HPCC_VISIBLE_DEVICES:-0}"
exec "$(dirname -- "${BASH_SOURCE[0]}")/launch_babysitter.sh" "$@"

#!/usr/bin/env bash
# launch_babysitter.sh with the values of the Qwen model. The environment wins here too.
export PORT="${PORT:-8120}"
export SERVICE_NAME="${SERVICE_NAME:-qwen-service}"
export SERVICE_TYPE="${SERVICE_TYPE:-InfiniLM}"
export MODEL_PATH="${MODEL_PATH:-/models/Qwen}"
export HPCC_VISIBLE_DEVICES="${HPCC_VISIBLE_DEVICES:-1}"
exec "$(dirname -- "${BASH_SOURCE[0]}")/launch_babysitter.sh" "$@"

#!/usr/bin/env bash
# launch_babysitter.sh with the values of the Qwen model. The environment wins here too.
export PORT="${PORT:-8200}"
export SERVICE_TYPE="${SERVICE_TYPE:-InfiniLM}"
export MODEL_PATH="${MODEL_PATH:-/models/Qwen3-32B}"
export NDEV="${NDEV:-4}"
export MAX_BATCH="${MAX_BATCH:-16}"
export HPCC_VISIBLE_DEVICES="${HPCC_VISIBLE_DEVICES:-4,5,6,7}"
exec "$(dirname -- "${BASH_SOURCE[0]}")/launch_babysitter.sh" "$@"

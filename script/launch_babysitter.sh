#!/usr/bin/env bash
# Launch one babysitter and its server. Copy this file and edit the block, or set the variables.

# --- configuration; the environment wins -----------------------------------------------------------------------------
HOST="${HOST:-localhost}"                  # where the server is reached, also by others: see BABYSITTER_HOST in README.md
PORT="${PORT:-8100}"                       # the server's port; the babysitter itself answers on the next one
SERVICE_NAME="${SERVICE_NAME:-}"           # empty: infinilm-TYPE-PORT
SERVICE_TYPE="${SERVICE_TYPE:-InfiniLM}"   # or InfiniLM-Rust, vLLM, mock
REGISTRY_URL="${REGISTRY_URL-http://localhost:18000}" # empty: none
ROUTER_URL="${ROUTER_URL-http://localhost:8000}"      # empty: none
MAX_RESTARTS="${MAX_RESTARTS:-10000}"
RESTART_DELAY="${RESTART_DELAY:-5}"            # seconds
HEARTBEAT_INTERVAL="${HEARTBEAT_INTERVAL:-30}" # seconds

# InfiniLM
MODEL_PATH="${MODEL_PATH:-/path/to/model}" # vLLM: the model
MODEL_NAME="${MODEL_NAME:-}"               # empty: the folder's name
LAUNCH_SCRIPT="${LAUNCH_SCRIPT:-}"         # empty: the first InfiniLM/scripts/launch_server.py under /workspace or here
DEV="${DEV:-metax}"
NDEV="${NDEV:-1}"                          # number of devices
MAX_BATCH="${MAX_BATCH:-3}"
MAX_TOKENS="${MAX_TOKENS:-}"
AWQ="${AWQ:-false}"
REQUEST_TIMEOUT="${REQUEST_TIMEOUT:-30}"   # seconds
MAX_CONCURRENCY="${MAX_CONCURRENCY-5}"     # empty: as many as come

# InfiniLM-Rust
CONFIG_FILE="${CONFIG_FILE:-}"

HPCC_VISIBLE_DEVICES="${HPCC_VISIBLE_DEVICES:-0}"
CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-}"
PYTHON_CMD="${PYTHON_CMD:-python3}"        # the babysitter's own; python3: the newest that suits
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
if [[ $PYTHON_CMD != python3 ]]; then export SVC_PYTHON_FOR_VENV="${SVC_PYTHON_FOR_VENV:-$PYTHON_CMD}"; fi
launch babysitter HOST PORT SERVICE_NAME SERVICE_TYPE REGISTRY_URL ROUTER_URL MAX_RESTARTS RESTART_DELAY HEARTBEAT_INTERVAL \
  MODEL_PATH MODEL_NAME LAUNCH_SCRIPT DEV NDEV MAX_BATCH MAX_TOKENS AWQ REQUEST_TIMEOUT MAX_CONCURRENCY CONFIG_FILE \
  HPCC_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES "${!BABYSITTER_@}"

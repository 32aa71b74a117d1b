#!/usr/bin/env bash
# Launch one babysitter and its server. Copy this file and edit the block, or set the variables.

# --- configuration; the environment wins -----------------------------------------------------------------------------
PORT="${PORT:-8100}"                       # the server's port; the babysitter itself answers on the next one
SERVICE_NAME="${SERVICE_NAME:-service-1}"
SERVICE_TYPE="${SERVICE_TYPE:-InfiniLM}"   # or InfiniLM-Rust
MODEL_PATH="${MODEL_PATH:-/path/to/model}" # InfiniLM-Rust: its configuration file
REGISTRY_URL="${REGISTRY_URL:-http://localhost:18000}"
ROUTER_URL="${ROUTER_URL:-}"
BABYSITTER_HOST="${BABYSITTER_HOST:-}"     # the name under which other machines reach the server
HPCC_VISIBLE_DEVICES="${HPCC_VISIBLE_DEVICES:-0}"
CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-}"
NDEV="${NDEV:-}"                           # number of devices
MAX_BATCH="${MAX_BATCH:-}"
MAX_TOKENS="${MAX_TOKENS:-}"
REQUEST_TIMEOUT="${REQUEST_TIMEOUT:-}"     # seconds
# ---------------------------------------------------------------------------------------------------------------------

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
require_port PORT
BABYSITTER_REGISTRY_URL="${BABYSITTER_REGISTRY_URL:-$REGISTRY_URL}"
BABYSITTER_ROUTER_URL="${BABYSITTER_ROUTER_URL:-$ROUTER_URL}"
babysitter_settings
flags_from --ndev NDEV --max-batch MAX_BATCH --max-tokens MAX_TOKENS --request-timeout REQUEST_TIMEOUT
prepare
url="$(local_url "$BABYSITTER_HOST" "$((PORT + 1))")"
start_once "babysitter_$PORT" "$PORT" "$url" "$SERVICE_NAME" --name "$SERVICE_NAME" --port "$PORT" \
  --service-type "$SERVICE_TYPE" --path "$MODEL_PATH" "${FLAGS[@]}" "${BABYSITTER_FLAGS[@]}"
await_babysitter "babysitter_$PORT" "$PORT" "$url" || true
say "Try: curl $url/health"

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
require_port PORT
for name in MAX_RESTARTS NDEV MAX_BATCH MAX_TOKENS REQUEST_TIMEOUT MAX_CONCURRENCY; do require_whole_number "$name"; done
for name in RESTART_DELAY HEARTBEAT_INTERVAL; do require_number "$name"; done
BABYSITTER_REGISTRY_URL="${BABYSITTER_REGISTRY_URL:-${REGISTRY_URL:-none}}"
BABYSITTER_ROUTER_URL="${BABYSITTER_ROUTER_URL:-${ROUTER_URL:-none}}"
babysitter_settings
kind="${SERVICE_TYPE,,}"
served="$MODEL_PATH"
case "$kind" in
  infinilm) [[ -e $MODEL_PATH ]] || fail "MODEL_PATH: there is no '$MODEL_PATH'; set it to the model's folder" 78 ;;
  infinilm-rust)
    served="${CONFIG_FILE:-$MODEL_PATH}"
    [[ -f $served ]] || fail "CONFIG_FILE: there is no file '$served'; set it to the server's TOML file" 78
    ;;
esac
# The babysitter works in the project's folder; what is named is named from where the caller is.
for name in served LAUNCH_SCRIPT; do
  if [[ -e ${!name} ]]; then printf -v "$name" '%s' "$(realpath -s -- "${!name}")"; fi
done
flags_from --name SERVICE_NAME --max-restarts MAX_RESTARTS --restart-delay RESTART_DELAY \
  --heartbeat-interval HEARTBEAT_INTERVAL
flags=("${FLAGS[@]}")
if [[ $kind == infinilm ]]; then
  flags_from --dev DEV --ndev NDEV --max-batch MAX_BATCH --request-timeout REQUEST_TIMEOUT --max-tokens MAX_TOKENS \
    --max-concurrency MAX_CONCURRENCY --model-name MODEL_NAME --launch-script LAUNCH_SCRIPT
  flags+=("${FLAGS[@]}")
  if is_true AWQ false; then flags+=(--awq); fi
elif [[ $kind != infinilm-rust && -n $MODEL_NAME ]]; then
  flags+=(--model-name "$MODEL_NAME")
fi
if [[ $PYTHON_CMD != python3 ]]; then export SVC_PYTHON_FOR_VENV="${SVC_PYTHON_FOR_VENV:-$PYTHON_CMD}"; fi
prepare
announce "$HOST"
url="$(babysitter_url "${BABYSITTER_HOST:-$HOST}" "$PORT")"
start_once "babysitter_$PORT" "$PORT" "$url" "${SERVICE_NAME:-infinilm-$kind-$PORT}" --port "$PORT" \
  --service-type "$SERVICE_TYPE" --path "$served" "${flags[@]}" "${BABYSITTER_FLAGS[@]}" --host "$HOST" "${FLAGS[@]}"
status=0
await_babysitter "babysitter_$PORT" "$PORT" "$url" || status=$?
((status < 2)) || exit "$ENDED_WITH"
say "Try: curl $url/health"

#!/usr/bin/env bash
# /app/docker_entrypoint.sh, as the image's entry point was called before.
exec "$(dirname -- "${BASH_SOURCE[0]}")/deploy/docker/entrypoint.sh" "$@"

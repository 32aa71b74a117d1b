#!/usr/bin/env bash
# Deployed scripts call this name; there is one implementation now.
exec "$(dirname -- "${BASH_SOURCE[0]}")/launch_all.sh" "$@"

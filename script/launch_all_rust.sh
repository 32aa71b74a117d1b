#!/usr/bin/env bash
# Deployed scripts call this name; there is one implementation now. Sourced, as bash's arrays need it, it works as well.
# shellcheck source=script/launch_all.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/launch_all.sh"

#!/usr/bin/env bash
# Make requirements/*.lock again from pyproject.toml: script/lock.sh [--upgrade]. Needs uv.

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

command -v uv >/dev/null || fail "uv is needed: https://docs.astral.sh/uv/getting-started/installation/" 78
cd "$SVC_ROOT"
compile=(uv pip compile --quiet --universal --python-version 3.11 --generate-hashes
  --custom-compile-command script/lock.sh "$@" pyproject.toml requirements/build.in)
"${compile[@]}" -o requirements/run.lock
# The second file only adds to the first: the tests run on the versions that are deployed.
"${compile[@]}" --extra dev --constraint requirements/run.lock -o requirements/dev.lock
say "requirements: $(grep -c '==' requirements/run.lock) packages to run, $(grep -c '==' requirements/dev.lock) to develop"

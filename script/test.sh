#!/usr/bin/env bash
# Check and test everything: script/test.sh [--all|--engines] [PYTEST-ARGUMENTS…]. Makes the same environment as
# launch_all.sh first, and installs the Debian packages that tests need where it may; else its last lines say what was
# skipped, and why.
#
#   --all      also what takes minutes: real clients, engines, containers and a booted systemd (the markers "world" and
#              "engines"; as root), and the router's tests from its sources beside its compiled form
#   --engines  only tests/engines, with every engine of docs/engines.md: each is installed once, under data/engines (5 GB)

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=script/test_packages.sh
. "$SVC_ROOT/script/test_packages.sh"

WHICH=""
if [[ ${1:-} == --all || ${1:-} == --engines ]]; then
  WHICH=$1
  shift
fi
[[ $WHICH != --all ]] || TEST_PROGRAMS+=$'\n'$WORLD_PROGRAMS
install_programs
trap tell_missing EXIT
SVC_COMPILE=no "$SVC_ROOT/script/setup.sh" dev # below
cd "$SVC_ROOT"
export PATH="$SVC_VENV/bin:$PATH"
# Tests start some thousand processes, which each compile every module again where this is set, as in many containers.
unset PYTHONDONTWRITEBYTECODE

# One after the other: each loads the machine by itself.
if [[ $WHICH == --engines ]]; then
  python -m pytest -m "not soak" --timeout 1800 tests/engines "$@"
  exit
fi

step() {
  local began=$SECONDS
  say "== $*"
  "$@" || fail "$* found faults (exit code $?)"
  say "   ok, $((SECONDS - began)) s"
}

# compile_tests: pytest compiles a test's file with its asserts written out, once where it finds that done. In a new clone its
# workers, who begin at the same time, would each do all of it.
compile_tests() {
  local said
  said="$(python -m pytest --collect-only -q "$@" 2>&1)" || { printf '%s\n' "$said" | tail -n 40 && return 1; }
}

mapfile -t scripts < <(grep -rlE '^#!.*\b(ba)?sh$' script deploy .ci)
check() {
  step ruff check .
  step ruff format --check .
  step mypy
  step mypy script/helper.py script/reference.py
  for program in deploy/python/{build,compile}.py; do step mypy "$program"; done
  step shellcheck -x "${scripts[@]}"
  step compile_tests "$@"
}
# Workers of the tests' routers run the compiled data plane, where that can be made. Beside that the checks, each of which
# works on one processor.
say "== router, compiled"
check "$@" &
checks=$! compiled=0
python deploy/python/compile.py || compiled=$?
wait "$checks" || exit
((compiled == 0 || compiled == 69)) || fail "the data plane does not compile (said above)"
say "== pytest"
# Two workers for a processor, as tests wait more than they compute; at most eight, who have ports of their own
# (tests/ports.py). The tests of one file stay together, in their order: some share a real node. (pytest-xdist's groups do
# nothing under this pytest, which no longer keeps the id that they change.)
# A worker that dies ends the run: xdist would wait for ever for the rest of its file. And for a worker that stands still:
# after forty minutes, four times what a run takes, it is interrupted, and tests/conftest.py says which tests did not end.
workers=$((2 * $(nproc) < 8 ? 2 * $(nproc) : 8))
run_tests() {
  timeout --foreground --signal INT --kill-after 60 40m \
    python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder --max-worker-restart 0 "$@"
}
# The router's rooms as its workers run them: compiled, where that can be.
form=()
if python -c 'from router import compiled; raise SystemExit(compiled.find() is None)'; then form=(-p tests.compiled); fi
run_tests "${form[@]}" "$@"
# Those of the world one after the other: each loads the machine by itself.
if [[ $WHICH == --all ]]; then python -m pytest -m "world or engines" --timeout 1800 "$@"; fi
# And the router's rooms from their sources, as they run where there is no compiler.
if [[ $WHICH == --all ]] && ((${#form[@]} > 0)); then run_tests -q -m 'not e2e and not soak and not world' tests/router; fi

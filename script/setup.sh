#!/usr/bin/env bash
# Make the project's own Python environment: script/setup.sh [run|dev]
#
# The first time it makes .venv (uv if present, else python3 -m venv and pip) and installs the locked, hashed versions.
# Afterwards a marker in the environment, which carries the locks' hash, makes it instant. The marker says "unfinished"
# while work goes on, so an interrupted set-up is done again from the start. Then it compiles the router's data plane, if
# the sources have changed since that was done; where there is no C compiler, the router runs from its sources.
#
#   SVC_VENV=FOLDER   make the environment there          SVC_PYTHON_FOR_VENV=PYTHON   make it with that Python
#   SVC_SETUP=skip    use $SVC_VENV exactly as it is
#   SVC_COMPILE=no    do not compile      =yes   end with an error if that cannot be done
#                     =new   compile only for an environment that is made or changed now, as the launch scripts have it

# shellcheck source=script/lib.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

# What the caller's Python, pip and uv are told is meant for the caller's own environments. Only what says where packages
# come from, and how that is reached, is kept (pip's part of it by keep_index below).
unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONNOUSERSITE
for name in "${!UV_@}"; do
  case "$name" in
    UV_*INDEX* | UV_FIND_LINKS | UV_KEYRING_PROVIDER | UV_INSECURE_HOST | UV_NATIVE_TLS | UV_SYSTEM_CERTS) ;;
    UV_OFFLINE | UV_HTTP_* | UV_*CACHE* | UV_CONCURRENT_* | UV_LINK_MODE | UV_PYTHON_*MIRROR* | UV_PYTHON_INSTALL_DIR) ;;
    *) unset "$name" ;;
  esac
done

MARKER="$SVC_VENV/.svc-setup"
WANTED="${1:-run}"

# find_python: print the newest suitable Python. Shims that name a version they do not have are tried and passed over.
find_python() {
  local candidate
  for candidate in ${SVC_PYTHON_FOR_VENV:-python3.13 python3.12 python3.11 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  return 1
}

# fingerprint KIND: print what the marker says when an environment of that kind is whole.
fingerprint() {
  local hash
  hash="$(cd "$SVC_ROOT" && cat -- requirements/run.lock requirements/dev.lock pyproject.toml | sha256sum)"
  printf '%s %s\n' "$1" "${hash%% *}"
}

is_whole() {
  local found
  [[ -x $SVC_PYTHON && -f $MARKER ]] || return 1
  found="$(<"$MARKER")"
  # An environment for development can run the services, not the other way round.
  [[ $found == "$(fingerprint "$WANTED")" || $found == "$(fingerprint dev)" ]]
}

# make_empty: a new environment without packages, in place of an unfinished one.
make_empty() {
  local python uv=""
  if command -v uv >/dev/null; then uv=yes; fi
  if python="$(find_python)"; then
    [[ -n $uv ]] || "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
      fail "$python has no venv module. Install it, for example: apt-get install python3-venv" 78
    say "set-up: making $SVC_VENV with ${uv:+uv and }$("$python" --version)"
  elif [[ -n $uv ]]; then
    python=">=3.11"
    say "set-up: making $SVC_VENV; no Python 3.11 or newer here, so uv fetches one"
  else
    fail "no Python 3.11 or newer found (looked for ${SVC_PYTHON_FOR_VENV:-python3.13, python3.12, python3.11, python3}).
  Install one, for example: apt-get install python3 python3-venv
  or name one: SVC_PYTHON_FOR_VENV=/path/to/python3.11 $0" 78
  fi
  rm -rf -- "$SVC_VENV"
  mkdir -p -- "$SVC_VENV"
  printf 'unfinished\n' >"$MARKER"
  if [[ -n $uv ]]; then
    uv venv --quiet --allow-existing --python "$python" -- "$SVC_VENV" || fail "uv could not make $SVC_VENV"
  else
    "$python" -m venv -- "$SVC_VENV" || fail "$python -m venv could not make $SVC_VENV"
  fi
}

# KEEP: of pip's settings, those that say where packages come from. The rest of the caller's (user, target, prefix,
# constraint, dry-run, no-binary …) would put them elsewhere, or others in their place.
KEEP="
import ast, sys
wanted = 'index-url extra-index-url no-index find-links trusted-host cert client-cert proxy keyring-provider timeout retries \
cache-dir no-cache-dir'.split()
order = ('global', 'install', ':env:')  # later ones win
found = {}
for line in sys.stdin:
    key, _, value = line.strip().partition('=')
    section, _, name = key.rpartition('.')
    if section in order and name in wanted:
        found[order.index(section), name] = value
for (_, name), value in sorted(found.items()):
    sys.stdout.write('PIP_' + name.upper().replace('-', '_') + '=' + ' '.join(ast.literal_eval(value).split()) + '\\0')
"

# keep_index: from here on pip heeds no file and no variable of the caller's, but those that KEEP names.
keep_index() {
  local settings name kept=()
  settings="$("$SVC_PYTHON" -I -m pip config list --disable-pip-version-check)" ||
    fail "pip cannot read its settings (said above); mend the file that it names" 78
  mapfile -d '' -t kept < <("$SVC_PYTHON" -I -c "$KEEP" <<<"$settings")
  for name in "${!PIP_@}"; do unset "$name"; done
  export PIP_CONFIG_FILE=/dev/null "${kept[@]}"
}

# install ARGS…: one installation, with progress; uv shows its own, pip's is cut down to a line per package. What it
# complained of is shown and stays in COMPLAINTS.
COMPLAINTS="$SVC_VENV/.svc-setup.log"
install() {
  local status=0 copy
  exec 6> >(tee -- "$COMPLAINTS" >&2)
  copy=$!
  if command -v uv >/dev/null; then
    uv pip install --python "$SVC_PYTHON" "$@" 2>&6 || status=$?
  else
    "$SVC_PYTHON" -I -m pip install --disable-pip-version-check --no-input "$@" 2>&6 |
      awk '/^(Collecting|Installing|Successfully)/ { sub(/ \(from .*/, ""); print "  " substr($0, 1, 100); fflush() }' ||
      status=$?
  fi
  exec 6>&-
  wait "$copy" || true
  return "$status"
}

# cause: what the last installation failed of, in a line, as far as its complaints tell.
cause() {
  local said
  said="$(<"$COMPLAINTS")"
  case "$said" in
    *'No space left'*) echo "the disk is full" ;;
    *'ermission denied'*) echo "a folder may not be written" ;;
    *'HASHES'* | *'ash mismatch'*) echo "the index gave other files than the locked ones: it changes them, or is not the one that was meant" ;;
    *'CERTIFICATE_VERIFY_FAILED'* | *'invalid peer certificate'* | *'SSLError'*)
      echo "the index's certificate is not trusted; a CA of your own is named by PIP_CERT, SSL_CERT_FILE for uv" ;;
    *'ProxyError'* | *'Tunnel connection failed'*) echo "the proxy refuses or cannot be reached (HTTPS_PROXY, NO_PROXY)" ;;
    *'name resolution'* | *'Name or service not known'* | *'dns error'*) echo "the index's name cannot be resolved (DNS)" ;;
    *'401 '* | *'403 '*) echo "the index refuses the credentials, or wants some" ;;
    *'imed out'* | *'onnection refused'* | *'NewConnectionError'* | *'unreachable'*) echo "the index cannot be reached" ;;
    *'No matching distribution'* | *'not found in the package registry'* | *'404 '*) echo "the index lacks a locked package" ;;
    *'gcc'* | *'error: subprocess-exited-with-error'*) echo "a package has no wheel for this machine and cannot be built here" ;;
    *) echo "see above" ;;
  esac
}

# compile: have the router's data plane compiled into the environment; a moment if it is. What it does it says itself.
compile() {
  local status=0
  [[ ${SVC_COMPILE:-} != no ]] || return 0
  "$SVC_PYTHON" -P "$SVC_ROOT/deploy/python/compile.py" || status=$?
  [[ $status == 0 || ${SVC_COMPILE:-} != yes ]] || fail "SVC_COMPILE=yes, but the router's data plane is not compiled" "$status"
}

main() {
  local began=$SECONDS
  [[ $WANTED == run || $WANTED == dev ]] || fail "usage: script/setup.sh [run|dev]" 2
  if [[ ${SVC_SETUP:-} == skip ]]; then
    [[ -x $SVC_PYTHON ]] || fail "SVC_SETUP=skip, but there is no $SVC_PYTHON" 78
    return
  fi
  case "${SVC_COMPILE:-}" in
    '' | no | yes | new) ;;
    *) fail "SVC_COMPILE must be no, yes or new, not '$SVC_COMPILE'" 78 ;;
  esac
  if is_whole && [[ ${SVC_COMPILE:-} == new ]]; then return; fi
  # One set-up at a time; a second start waits here and then finds the work done.
  exec 8<"$SVC_ROOT"
  if command -v flock >/dev/null; then flock 8; fi
  if is_whole; then
    [[ ${SVC_COMPILE:-} == new ]] || compile
    return
  fi

  if [[ -e $SVC_VENV && ! -f $MARKER ]] && [[ -n "$(ls -A -- "$SVC_VENV")" ]]; then
    fail "$SVC_VENV exists and was not made by this script.
  Remove it, name another folder with SVC_VENV=…, or use it as it is with SVC_SETUP=skip." 78
  fi
  if [[ ! -x $SVC_PYTHON || "$(cat -- "$MARKER" 2>/dev/null)" == unfinished ]]; then
    make_empty
  fi
  printf 'unfinished\n' >"$MARKER"
  command -v uv >/dev/null || keep_index
  say "set-up: installing the locked packages (requirements/$WANTED.lock); the first time takes a minute or two"
  install --require-hashes -r "$SVC_ROOT/requirements/$WANTED.lock" ||
    fail "the packages could not be installed: $(cause). Then run the command again"
  install --no-deps --no-build-isolation -e "$SVC_ROOT" ||
    fail "the project could not be installed into $SVC_VENV: $(cause)"
  fingerprint "$WANTED" >"$MARKER"
  compile
  say "set-up: done in $((SECONDS - began)) s"
}

main

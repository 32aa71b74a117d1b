#!/usr/bin/env bash
# Sourced by test.sh: the programs of Debian's packages that tests run, installed where that may be done.
#
# Registries over one store start a real etcd, a babysitter's clock is moved by faketime, Prometheus scrapes the fleet,
# Chromium opens the operator's page, systemd judges the units, the guides' commands are typed (curl, openssl), the router's
# data plane is compiled, and official clients run under node.

# program package: what is missing, and what brings it.
TEST_PROGRAMS="etcd etcd-server
etcdctl etcd-client
faketime faketime
prometheus prometheus
promtool prometheus
chromium chromium
cc gcc
systemd-analyze systemd
curl curl
openssl openssl
node nodejs
npm npm
taskset util-linux
ip iproute2"
# And what those run that take minutes: jobs of a real Slurm.
# shellcheck disable=SC2034 # test.sh adds it
WORLD_PROGRAMS="slurmctld slurmctld
slurmd slurmd
sbatch slurm-client
munged munge
slurmdbd slurmdbd
mariadbd mariadb-server"
MISSING=() # programs that tests do without
WHY=""     # and why they are not installed

# missing_programs: print those of TEST_PROGRAMS that are not here, each with its package.
missing_programs() {
  local program package
  while read -r program package; do
    command -v "$program" >/dev/null || printf '%s %s\n' "$program" "$package"
  done <<<"$TEST_PROGRAMS"
}

# install_programs: install what is missing, as root or by a sudo that asks nothing; leaves in MISSING and WHY what cannot be.
install_programs() {
  local -a as_root=() packages=()
  mapfile -t packages < <(missing_programs | cut -d ' ' -f 2 | sort -u)
  ((${#packages[@]})) || return 0
  if ! command -v apt-get >/dev/null; then
    WHY="this is no Debian: there is no apt-get"
  elif ((EUID != 0)) && ! sudo -n true 2>/dev/null; then
    WHY="only root may install packages, and sudo is not here or asks for a password"
  else
    ((EUID == 0)) || as_root=(sudo -n)
    say "== installing ${packages[*]}"
    # RUNLEVEL=1: whatever the packages bring is started by the tests, not by their installation.
    { "${as_root[@]}" apt-get update -qq &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -qq -y --no-install-recommends "${packages[@]}" libc6-dev; } </dev/null ||
      WHY="apt-get could not install them (said above)"
  fi
  mapfile -t MISSING < <(missing_programs | cut -d ' ' -f 1)
}

# tell_missing: the last lines of a run.
tell_missing() {
  ((${#MISSING[@]})) || return 0
  warn "skipped: the tests that need ${MISSING[*]}"
  warn "  $WHY"
  warn "  as root: apt-get install $(missing_programs | cut -d ' ' -f 2 | sort -u | tr '\n' ' ')"
}

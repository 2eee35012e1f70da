#!/usr/bin/env bash
# A real Slurm with two nodes on this machine, to try profiles on and for tests/test_slurm.py. Debian or Ubuntu, root.
#     eval "$(slurm/testbed.sh start)"                  # with accounting (slurmdbd on MariaDB)
#     eval "$(slurm/testbed.sh start --no-accounting)"  # as on a cluster that keeps no accounts
#     slurm/testbed.sh crash n2                         # node n2 dies with everything that runs on it
#     slurm/testbed.sh revive n2
#     slurm/testbed.sh forget                           # what is up goes on without accounting and without its jobs
#     eval "$(slurm/testbed.sh stop)"                   # ends every daemon and removes its files
# Standard output holds the exports only. State lies in $BENCH_TESTBED (default /tmp/bench-testbed).
set -euo pipefail

HOME_DIR=${BENCH_TESTBED:-/tmp/bench-testbed}
NODES=(n1 n2)
NODE_MEMORY=4000 # MB that Slurm believes a node to have; nothing enforces it
DATABASE_PORT=13306
SHORT_MEMORY=5 # seconds that ended jobs are remembered without accounting
PACKAGES=(slurm-wlm munge)
ACCOUNTING_PACKAGES=(slurmdbd mariadb-server)

say() { printf 'testbed: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

need_root() { [ "$(id -u)" = 0 ] || die "needs root: it installs packages and starts munge, MariaDB and the Slurm daemons"; }

wait_for() { # SECONDS WHAT COMMAND...: until the command succeeds
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || die "$what did not start in time"
    sleep 0.2
  done
}

install_packages() {
  local wanted=("${PACKAGES[@]}") missing=() name
  [ "$1" = no ] || wanted+=("${ACCOUNTING_PACKAGES[@]}")
  for name in "${wanted[@]}"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
  done
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || die "needs the packages ${missing[*]}, and there is no apt-get here to install them"
  say "installing ${missing[*]}"
  # no daemon of a package may start by itself: those of the test bed listen elsewhere
  export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
  { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >&2 ||
    die "the packages ${missing[*]} could not be installed"
}

# ---------------------------------------------------------------------------------------------------- configuration

write_slurm_conf() { # ACCOUNTING SECONDS, that ended jobs are remembered
  local accounting=accounting_storage/none count=${#NODES[@]}
  [ "$1" = no ] || accounting=accounting_storage/slurmdbd
  cat >"$HOME_DIR/slurm.conf" <<CONF
ClusterName=testbed
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$HOME_DIR/munge/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=15
MinJobAge=$2
SlurmdTimeout=10
SlurmctldTimeout=10
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmctldPidFile=$HOME_DIR/pid/slurmctld
SlurmctldLogFile=$HOME_DIR/log/slurmctld
SlurmdPidFile=$HOME_DIR/pid/%n
SlurmdLogFile=$HOME_DIR/log/%n
SlurmdSpoolDir=$HOME_DIR/spool/%n
StateSaveLocation=$HOME_DIR/state
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
AccountingStorageType=$accounting
AccountingStorageHost=localhost
AccountingStoragePass=$HOME_DIR/munge/munge.socket
AccountingStoragePort=16819
NodeName=n[1-$count] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[17001-$((17000 + count))] CPUs=1 RealMemory=$NODE_MEMORY
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

write_slurmdbd_conf() {
  cat >"$HOME_DIR/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$HOME_DIR/munge/munge.socket
DbdHost=localhost
DbdPort=16819
SlurmUser=root
PidFile=$HOME_DIR/pid/slurmdbd
LogFile=$HOME_DIR/log/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$DATABASE_PORT
StorageUser=slurm
StoragePass=testbed
StorageLoc=slurm_acct_db
CONF
  chmod 600 "$HOME_DIR/slurmdbd.conf"
}

# ----------------------------------------------------------------------------------------------------------- daemons

start_munge() {
  dd if=/dev/urandom of="$HOME_DIR/munge/munge.key" bs=128 count=8 status=none
  chmod 600 "$HOME_DIR/munge/munge.key"
  chown -R munge:munge "$HOME_DIR/munge"
  setpriv --reuid=munge --regid=munge --clear-groups munged --key-file="$HOME_DIR/munge/munge.key" \
    --socket="$HOME_DIR/munge/munge.socket" --pid-file="$HOME_DIR/munge/munged.pid" \
    --log-file="$HOME_DIR/munge/munged.log" --seed-file="$HOME_DIR/munge/munged.seed" >&2
}

query() { mariadb --no-defaults --socket="$HOME_DIR/database/socket" -e "$1"; }

start_database() {
  mkdir -p "$HOME_DIR/database/files"
  chown -R mysql:mysql "$HOME_DIR/database"
  mariadb-install-db --no-defaults --user=mysql --datadir="$HOME_DIR/database/files" --skip-test-db \
    >"$HOME_DIR/log/database-install" 2>&1 || die "MariaDB could not be set up; see $HOME_DIR/log/database-install"
  mariadbd --no-defaults --user=mysql --datadir="$HOME_DIR/database/files" --socket="$HOME_DIR/database/socket" \
    --bind-address=127.0.0.1 --port=$DATABASE_PORT --pid-file="$HOME_DIR/database/pid" \
    --innodb-buffer-pool-size=64M --innodb-log-file-size=16M --innodb-lock-wait-timeout=900 \
    >"$HOME_DIR/log/database" 2>&1 </dev/null &
  wait_for 60 MariaDB query 'select 1'
  query "create database slurm_acct_db; create user slurm@'127.0.0.1' identified by 'testbed';
         create user slurm@localhost identified by 'testbed';
         grant all on slurm_acct_db.* to slurm@'127.0.0.1'; grant all on slurm_acct_db.* to slurm@localhost;"
}

start_accounting() {
  start_database
  write_slurmdbd_conf
  # the library looks for slurmdbd.conf beside slurm.conf
  slurmdbd >&2
  wait_for 60 slurmdbd sacctmgr -n show cluster
  sacctmgr -i add cluster testbed >/dev/null 2>&1 || true
}

start_controller() { # one that knows of no jobs, until the nodes have told it that they are there
  slurmctld -c >&2
  wait_for 30 slurmctld scontrol ping
  wait_for 60 "a node" nodes_idle
}

start_node() { slurmd -N "$1" >&2; }

nodes_idle() { [ "$(sinfo -h -N -o '%T' | grep -c '^idle')" = ${#NODES[@]} ]; }

give_up() { # what did not start is not left half up
  tail -n 5 "$HOME_DIR"/log/* "$HOME_DIR/munge/munged.log" >&2 2>/dev/null || true
  halt
}

start() {
  local accounting=yes age=120
  case ${1:-} in
    '') ;;
    --no-accounting) accounting=no age=$SHORT_MEMORY ;;
    *) die "start takes --no-accounting only, not $1" ;;
  esac
  need_root
  install_packages $accounting
  halt
  mkdir -p "$HOME_DIR"/{log,pid,spool,state,munge}
  chmod 755 "$HOME_DIR"
  export SLURM_CONF=$HOME_DIR/slurm.conf
  write_slurm_conf $accounting "$age"
  trap 'give_up' EXIT
  start_munge
  [ $accounting = no ] || start_accounting
  local node
  for node in "${NODES[@]}"; do start_node "$node"; done
  start_controller
  trap - EXIT
  say "${#NODES[@]} nodes are up (accounting: $accounting), files in $HOME_DIR"
  echo "export SLURM_CONF=$SLURM_CONF"
}

# -------------------------------------------------------------------------------------------------------------- ends

processes_of() { # NODE: what Slurm runs on a node, its own watchers (slurmstepd) first, so that they report nothing
  local path parent jobs=() watchers=()
  for path in /proc/[0-9]*; do
    if { tr '\0' '\n' <"$path/environ"; } 2>/dev/null | grep -qx "SLURMD_NODENAME=$1"; then
      jobs+=("${path#/proc/}")
      parent=$(ps -o ppid= -p "${path#/proc/}" | tr -d ' ') || continue
      if [ "$(ps -o comm= -p "$parent")" = slurmstepd ]; then watchers+=("$parent"); fi
    fi
  done
  echo "${watchers[@]}" "${jobs[@]}"
}

end_file() { # PIDFILE SIGNAL
  local pid
  [ -s "$1" ] || return 0
  pid=$(<"$1")
  kill "-$2" "$pid" 2>/dev/null || return 0
  local deadline=$((SECONDS + 20))
  while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
  kill -KILL "$pid" 2>/dev/null || true
}

known() {
  local node
  for node in "${NODES[@]}"; do [ "$node" = "${1:-}" ] && return; done
  die "there is no node '${1:-}'; the nodes are ${NODES[*]}"
}

crash() {
  need_root
  known "${1:-}"
  [ -s "$HOME_DIR/pid/$1" ] || die "node $1 is not up"
  kill -KILL "$(<"$HOME_DIR/pid/$1")" 2>/dev/null || true
  rm -f "$HOME_DIR/pid/$1"
  local pid
  for pid in $(processes_of "$1"); do kill -KILL "$pid" 2>/dev/null || true; done
  say "node $1 is dead"
}

revive() {
  need_root
  known "${1:-}"
  export SLURM_CONF=$HOME_DIR/slurm.conf
  start_node "$1"
  say "node $1 is back"
}

forget() { # a new configuration for a new controller; munge and the nodes stay
  need_root
  [ -s "$HOME_DIR/pid/slurmctld" ] || die "no test bed is up"
  export SLURM_CONF=$HOME_DIR/slurm.conf
  end_file "$HOME_DIR/pid/slurmctld" TERM
  end_file "$HOME_DIR/pid/slurmdbd" TERM
  end_file "$HOME_DIR/database/pid" TERM
  write_slurm_conf no "$SHORT_MEMORY"
  start_controller
  say "a new controller is up (accounting: no)"
}

halt() {
  [ -d "$HOME_DIR" ] || return 0
  local node pid
  for node in "${NODES[@]}"; do
    for pid in $(processes_of "$node"); do kill -KILL "$pid" 2>/dev/null || true; done
    end_file "$HOME_DIR/pid/$node" TERM
  done
  end_file "$HOME_DIR/pid/slurmctld" TERM
  end_file "$HOME_DIR/pid/slurmdbd" TERM
  end_file "$HOME_DIR/database/pid" TERM
  end_file "$HOME_DIR/munge/munged.pid" TERM
  rm -rf "$HOME_DIR"
}

stop() {
  need_root
  halt
  say "stopped"
  echo "unset SLURM_CONF"
}

command=${1:-}
[ $# = 0 ] || shift
case $command in
  start | stop | crash | revive | forget) "$command" "$@" ;;
  *) die "say start [--no-accounting], stop, crash NODE, revive NODE or forget" ;;
esac

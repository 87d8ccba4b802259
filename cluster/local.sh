#!/usr/bin/env bash
# A Ray cluster on this machine, with token authentication: a head that runs no work and some workers.
#
#   cluster/local.sh up       start it
#   cluster/local.sh status   show its nodes and resources
#   cluster/local.sh down     end the processes that `up` started, and nothing else
#
# KDSCALE_LOCAL_DIR        logs, process ids and Ray's sockets   (/tmp/kdscale-local; keep it short: the
#                          path of a UNIX socket has at most 107 characters)
# KDSCALE_LOCAL_PORT       port of the head                      (6379; the dashboard's is 1886 more)
# KDSCALE_LOCAL_WORKERS    number of workers, 1 to 100           (2)
# KDSCALE_LOCAL_CPUS       CPUs that each worker offers          (2)
# KDSCALE_LOCAL_RESOURCES  further resources of each, as JSON    ({})
# KDSCALE_LOCAL_LABELS     labels of each, as name=value,...     (none)
set -euo pipefail

dir="${KDSCALE_LOCAL_DIR:-/tmp/kdscale-local}"
port="${KDSCALE_LOCAL_PORT:-6379}"
workers="${KDSCALE_LOCAL_WORKERS:-2}"
cpus="${KDSCALE_LOCAL_CPUS:-2}"
resources="${KDSCALE_LOCAL_RESOURCES:-"{}"}"
labels="${KDSCALE_LOCAL_LABELS:-}"
dashboard=$((port + 1886))
address="127.0.0.1:$port"
export RAY_AUTH_MODE=token
# A node that is silent for half a minute counts as lost; Ray's default is a minute (docs/faults.md).
export RAY_health_check_period_ms=2000 RAY_health_check_timeout_ms=5000 RAY_health_check_failure_threshold=4

ensure_token() {
    [[ -n "${RAY_AUTH_TOKEN:-}" || -n "${RAY_AUTH_TOKEN_PATH:-}" ]] && return
    # It prints the token as well, which has no place in a terminal or a log.
    ray get-auth-token --generate >/dev/null 2>&1
}

# start_node NAME ARGUMENT... : `--block` ties all processes of a node to the one pid recorded here.
start_node() {
    local name="$1"
    shift
    nohup ray start --block --disable-usage-stats --min-worker-port 0 --max-worker-port 0 "$@" \
        >"$dir/$name.log" 2>&1 &
    echo $! >"$dir/$name.pid"
}

alive() { [[ "$(ps -o command= -p "$1" 2>/dev/null)" == *"ray start"* ]]; }

# wait_for NAME : until node NAME has registered with the head; fails when it died or took a minute.
wait_for() {
    for _ in $(seq 60); do
        grep -q "Ray runtime started" "$dir/$1.log" && return
        alive "$(cat "$dir/$1.pid")" || break
        sleep 1
    done
    echo "error: $1 did not start; the end of $dir/$1.log:" >&2
    tail -n 20 "$dir/$1.log" >&2
    return 1
}

up() {
    if ! [[ "$workers" =~ ^[1-9][0-9]?$|^100$ ]]; then
        echo "error: KDSCALE_LOCAL_WORKERS is $workers; give a number from 1 to 100" >&2
        return 2
    fi
    umask 077
    mkdir -p "$dir"
    if compgen -G "$dir/*.pid" >/dev/null; then
        echo "error: $dir has a cluster already; end it with: $0 down" >&2
        return 2
    fi
    ensure_token
    # Every port that has a fixed default is set: another cluster may have it on this machine.
    start_node head --head --port "$port" --dashboard-port "$dashboard" --num-cpus 0 --num-gpus 0 \
        --ray-client-server-port $((port + 1)) --dashboard-agent-listen-port $((port + 2)) \
        --temp-dir "$dir/ray"
    wait_for head
    local worker
    for worker in $(seq "$workers"); do
        # Nodes of one machine share a folder of sockets: two that start at once take the same names.
        start_node "worker-$worker" --address "$address" --num-cpus "$cpus" \
            --resources "$resources" ${labels:+--labels "$labels"} \
            --dashboard-agent-listen-port $((port + 10 * worker + 1)) \
            --metrics-export-port $((port + 10 * worker + 2))
        wait_for "worker-$worker"
    done
    echo "The cluster is up. Submit to it with:"
    echo "  kdscale submit CONFIG --address http://127.0.0.1:$dashboard --follow"
}

down() {
    local file pid
    for file in "$dir"/worker-*.pid "$dir"/head.pid; do
        [[ -e "$file" ]] || continue
        pid="$(cat "$file")"
        if alive "$pid"; then
            kill -TERM "$pid"
            for _ in $(seq 30); do
                alive "$pid" || break
                sleep 1
            done
        fi
        alive "$pid" && echo "error: process $pid of $file does not end" >&2 && return 1
        rm "$file"
    done
    echo "The cluster is down."
}

case "${1:-}" in
    up) up ;;
    down) down ;;
    status) ray status --address "$address" ;;
    *) sed -n '2,6p' "$0" >&2 && exit 2 ;;
esac

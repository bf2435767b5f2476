#!/bin/bash
# Sourced by ray.sbatch: a Ray cluster on the nodes of this allocation, and a command on it that a signal can interrupt.
# The first node gets the label pool=student, the others pool=teacher (settings.yaml asks for them).

# Every node finds the token in the home directory, which they share.
export RAY_AUTH_MODE=token
# Models of URLs are downloaded once for each node to a disk of its own, if the site names one, and else once for all
# nodes to the home directory.
[ -z "${SLURM_TMPDIR:-}" ] || export GMD_RAY_CACHE=${GMD_RAY_CACHE:-$SLURM_TMPDIR/gmd_ray}
# Ray's sockets lie below it, and their paths may have 107 bytes: not $SLURM_TMPDIR. A job of its own for each user.
ray_tmp=/tmp/ray-$SLURM_JOB_ID
# Several jobs may share a node: a port for each.
port=$((20000 + SLURM_JOB_ID % 10000))

start_ray() {
    (umask 077 && ray get-auth-token --generate >/dev/null)
    head_ip=$(hostname --ip-address | awk '{print $1}')
    export RAY_ADDRESS=$head_ip:$port
    local common=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats)
    # One node is all pools: without a label for teachers they would wait for ever.
    local first=student
    [ "$SLURM_JOB_NUM_NODES" -gt 1 ] || first=all
    ray start --head --node-ip-address="$head_ip" --port="$port" --temp-dir="$ray_tmp" \
        --labels="pool=$first" --include-dashboard=false "${common[@]}"
    if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
        # --relative=1: all nodes but the first. --block: Slurm sees when Ray ends, and ends it. srun does not take over
        # the CPUs of a task from sbatch: a node would get one.
        srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 \
            --cpus-per-task="$SLURM_CPUS_PER_TASK" --relative=1 --kill-on-bad-exit=0 \
            ray start --address="$RAY_ADDRESS" --block --labels=pool=teacher "${common[@]}" &
    fi
}

# run_resumable COMMAND...: runs it; on USR1 (the time limit is near) or TERM (preempted) it is told to stop, finishes
# what it has begun, and the job goes back into the queue, where the same command resumes. So it does when the cluster
# broke off the run (status 5), unless the job has been in the queue $most_restarts times again: that may have a cause.
most_restarts=10
run_resumable() {
    local driver status interrupted=no
    "$@" &
    driver=$!
    trap 'interrupted=yes; kill -TERM "$driver" 2>/dev/null' USR1 TERM
    # `wait` returns early on a trapped signal. Once more at the end: bash keeps the status of the driver.
    while kill -0 "$driver" 2>/dev/null; do
        wait "$driver" || true
    done
    wait "$driver" && status=0 || status=$?
    trap - USR1 TERM
    if [ "$interrupted" = yes ] && [ "$status" -ne 0 ]; then
        echo "interrupted with status $status: back into the queue"
        scontrol requeue "$SLURM_JOB_ID"
    elif [ "$status" -eq 5 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$most_restarts" ]; then
        echo "broken off with status 5: back into the queue (restart $((${SLURM_RESTART_COUNT:-0} + 1)))"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}

#!/bin/sh
# preStop of a worker: tells Ray that this node goes, then waits until its work is done or the deadline is over.
#   drain.sh SECONDS [COPY_SECONDS]
# Kubernetes sends SIGTERM when this ends, so terminationGracePeriodSeconds has to be longer than SECONDS. An idle node,
# which the autoscaler removes, is not kept waiting: nothing but Ray's own processes runs there.
set -eu

seconds=$1
copy_seconds=${2:-8} # for others to fetch what the node's last work has left in its object store
end=$(($(date +%s) + seconds))

# Without --node-id the command would join the cluster as a driver to learn it.
node=$(ps -eo args | sed -n 's|.*/raylet/raylet .*--node_id=\([0-9a-f]*\).*|\1|p' | head -n 1)

work() { # processes of actors and tasks; names of Ray itself (idle workers, agents) are no work
    # shellcheck disable=SC2009 # pgrep cannot leave out names
    ps -eo args | grep '^ray::' | grep -Ev '^ray::(IDLE|DashboardAgent|RuntimeEnvAgent)' || true
}

# A head that is gone already must not keep the pod.
timeout "$seconds" ray drain-node --address "$RAY_ADDRESS" ${node:+--node-id "$node"} \
    --reason DRAIN_NODE_REASON_PREEMPTION --reason-message preStop --deadline-remaining-seconds "$seconds" \
    || echo "drain.sh: Ray was not told; waiting all the same"

while [ -n "$(work)" ]; do
    [ "$(date +%s)" -lt "$end" ] || exit 0
    sleep 1
    busy_until=$(date +%s)
done
if [ -n "${busy_until:-}" ]; then
    copied=$((busy_until + copy_seconds))
    [ "$copied" -lt "$end" ] || copied=$end
    while [ "$(date +%s)" -lt "$copied" ]; do sleep 1; done
fi

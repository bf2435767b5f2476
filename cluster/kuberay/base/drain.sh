#!/bin/sh
# preStop of a worker: tells Ray that this node goes, then waits until its work is done or the deadline is over.
#   drain.sh SECONDS
# Kubernetes sends SIGTERM when this ends, so terminationGracePeriodSeconds has to be longer than SECONDS. An idle node,
# which the autoscaler removes, is not kept waiting: nothing but Ray's own processes runs there.
set -eu

seconds=$1
work() { # processes of actors and tasks; names of Ray itself (idle workers, agents) are no work
    # shellcheck disable=SC2009 # pgrep cannot leave out names
    ps -eo args | grep '^ray::' | grep -Ev '^ray::(IDLE|DashboardAgent|RuntimeEnvAgent)' || true
}

# A head that is gone already must not keep the pod.
timeout 10 ray drain-node --address "$RAY_ADDRESS" --reason DRAIN_NODE_REASON_PREEMPTION --reason-message preStop \
    --deadline-remaining-seconds "$seconds" || echo "drain.sh: Ray was not told; waiting all the same"

end=$(($(date +%s) + seconds))
while [ "$(date +%s)" -lt "$end" ] && [ -n "$(work)" ]; do
    sleep 1
done

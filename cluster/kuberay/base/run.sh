#!/bin/sh
# Entry point of a RayJob: gmd-ray, and no further cluster where the same command again would be of no use.
#   run.sh VERB [settings and options of gmd-ray]
# KubeRay tries a FAILED job again, up to backoffLimit times, each on a new cluster, and looks at no status. A STOPPED job
# is over, and it is not SUCCEEDED either. So this job stops itself after status 2 (a setting), 3 (images, a store) and 4
# (done, and refused by a gate), and fails after any other, which the next try may mend.
set -u

gmd-ray "$@"
status=$?
case $status in
    2 | 3 | 4) ;;
    *) exit "$status" ;;
esac
echo "run.sh: gmd-ray $1 ended with status $status, which the same command would again (docs/running.md: Exit status);"
echo "run.sh: the job ends as STOPPED, without a retry"
job=$(python -c 'import json, os
print(json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]["job_submission_id"])')
# Ray ends this script within seconds. Where it cannot, the job fails with its own status.
ray job stop --no-wait --address http://127.0.0.1:8265 "$job" && sleep "${RUN_STOP_S:-60}"
exit "$status"

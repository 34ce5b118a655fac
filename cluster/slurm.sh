#!/bin/bash
# A Ray cluster for one run, in one Slurm allocation:
#
#   sbatch --nodes=4 cluster/slurm.sh simclr/cifar10 RUN data.train=... trainer.workers=16
#
# RUN, the data and this environment must lie on a disk that all nodes share. Never run under Slurm
# yet: there was none where it was written.
#SBATCH --job-name=raycl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Two minutes before the end this script, and not Ray, gets SIGTERM. raycl needs 20 seconds of them
# to save; then the job goes back into the queue, and on from there. Before a pre-emption Slurm
# sends the same only with PreemptParameters=send_user_signal.
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

recipe=${1:?usage: sbatch cluster/slurm.sh RECIPE RUN [field=value ...]}
run=${2:?usage: sbatch cluster/slurm.sh RECIPE RUN [field=value ...]}
shift 2

# Other users reach these ports: what has no token is refused. Only this job's processes see it.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN
# Local to every node, and gone with the job where Slurm makes a TMPDIR for each.
export RAYCL_CACHE=${TMPDIR:-/tmp}/raycl-$SLURM_JOB_ID
# Slurm hands it to steps no more; without it they would have one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# The first address, never the loopback; raycl tells Gloo and NCCL the interface that has it.
address=$(srun --overlap --nodes=1 --ntasks=1 -w "$head" hostname -I)
address=${address%% *}
port=$((20000 + SLURM_JOB_ID % 10000)) # several jobs may share a head

# Short, as sockets lie in it, and apart from what other jobs leave behind.
temp=/tmp/ray-$SLURM_JOB_ID
srun --overlap --nodes=1 --ntasks=1 -w "$head" \
    ray start --head --block --node-ip-address="$address" --port="$port" --temp-dir="$temp" \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 10000)) --labels=tier=gpu \
    --num-cpus="$SRUN_CPUS_PER_TASK" --disable-usage-stats &
ray_head=$!
until ray status --address="$address:$port" >/dev/null 2>&1; do
    kill -0 "$ray_head" || exit 1
    sleep 2
done
if ((${#nodes[@]} > 1)); then
    others=$(IFS=,; echo "${nodes[*]:1}")
    srun --overlap --nodes=$((${#nodes[@]} - 1)) --ntasks-per-node=1 -w "$others" \
        ray start --block --address="$address:$port" --labels=tier=gpu \
        --num-cpus="$SRUN_CPUS_PER_TASK" --disable-usage-stats &
fi

raycl=
stopped=
stop() {
    stopped=yes
    [ -z "$raycl" ] || kill -TERM "$raycl" 2>/dev/null || true
}
trap stop TERM

# The same command begins a run and goes on with it.
export RAY_ADDRESS=$address:$port
raycl pretrain "$recipe" --run "$run" trainer.address=auto "$@" &
raycl=$!
[ -z "$stopped" ] || stop # it came in between

status=0
wait "$raycl" || status=$?
if [ -n "$stopped" ]; then # that wait ended with the trap, while raycl is still saving
    status=0
    wait "$raycl" || status=$?
fi

# raycl ends with 130 when it was interrupted; a run that ended by itself is not done again.
if [ -n "$stopped" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
# shellcheck disable=SC2046  # one process id each
kill $(jobs -p) 2>/dev/null || true
exit "$status"

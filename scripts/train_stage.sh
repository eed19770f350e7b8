#!/usr/bin/env bash
# Start a recipe on every process of every node. The scripts train_stage1.sh ... name the recipe; the rest are
# optional variables:
#   LAUNCHER   torchrun (default), deepspeed or accelerate
#   NPROC      processes of this node; default: its GPUs, or 1
#   ZERO       2, 3 or 3_offload: shard with DeepSpeed; empty: plain data parallel
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   several nodes: run the script on each (torchrun, accelerate)
#   HOSTFILE   several nodes with deepspeed: run the script once; the file has lines like "node1 slots=8"
# usage: scripts/train_stage.sh RECIPE [--key value ...]
set -euo pipefail
cd "$(dirname "$0")/.."
gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
nproc=${NPROC:-$((gpus > 0 ? gpus : 1))} nnodes=${NNODES:-1} rank=${NODE_RANK:-0}
address=${MASTER_ADDR:-127.0.0.1} port=${MASTER_PORT:-29500}
words=("$@")
[ -z "${ZERO:-}" ] || words+=(--trainer.deepspeed "zero$ZERO")

case ${LAUNCHER:-torchrun} in
  torchrun)
    exec torchrun --nnodes "$nnodes" --node_rank "$rank" --nproc_per_node "$nproc" \
      --master_addr "$address" --master_port "$port" -m train.run "${words[@]}" ;;
  deepspeed)
    hosts=(--num_accelerators "$nproc")
    [ -z "${HOSTFILE:-}" ] || hosts=(--hostfile "$HOSTFILE")
    exec deepspeed "${hosts[@]}" --master_port "$port" --module train.run "${words[@]}" ;;
  accelerate)
    several=()
    [ $((nnodes * nproc)) -eq 1 ] || several=(--multi_gpu)
    exec accelerate launch ${several[@]+"${several[@]}"} --num_processes $((nnodes * nproc)) --num_machines "$nnodes" \
      --machine_rank "$rank" --main_process_ip "$address" --main_process_port "$port" \
      --mixed_precision no --dynamo_backend no -m train.run "${words[@]}" ;;
  *) echo "LAUNCHER is ${LAUNCHER}; use torchrun, deepspeed or accelerate" >&2; exit 2 ;;
esac

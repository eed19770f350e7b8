#!/usr/bin/env bash
# Train the image tokenizer on one machine or many; run it on every node with its own --node_rank. Resumes from the newest
# checkpoint in the output folder. The names are those of UniTok's launcher; every other option is a key of the recipe.
# usage: [RECIPE=unitok_large] [PYTHON=python] scripts/train_tokenizer.sh [--nnodes N] [--nproc_per_node N]
#            [--node_rank R] [--master_addr HOST] [--master_port PORT] [--output_dir DIR]
#            [--train_data 'data/{00000..00099}.tar'] [--imagenet_val DIR --imagenet_classes FILE]
#            [--fid_eval_src DIR --fid_eval_dst DIR] [--KEY VALUE ...]
# example: scripts/train_tokenizer.sh --nnodes 2 --nproc_per_node 8 --node_rank 0 --master_addr node0 --master_port 29500 \
#              --output_dir runs/unitok --train_data 'data/{00000..00999}.tar'
set -euo pipefail
case ${1:-} in -h | --help) sed -n '2,9s/^# //p' "$0" && exit 0 ;; esac
launch=() keys=()
while [ $# -gt 0 ]; do
    [ $# -gt 1 ] || { echo "$1 has no value; give one, or see $0 --help" >&2 && exit 2; }
    case $1 in
        --nnodes | --nproc_per_node | --node_rank | --master_addr | --master_port) launch+=("$1" "$2") ;;
        --output_dir) keys+=(--output "$2") ;;
        --train_data) keys+=(--shards.urls "$2") ;;
        --imagenet_val) keys+=(--evaluation.imagenet_val "$2") ;;
        --imagenet_classes) keys+=(--evaluation.classes "$2") ;;
        --fid_eval_src) keys+=(--evaluation.fid_reference "$2") ;;
        --fid_eval_dst) keys+=(--evaluation.fid_output "$2") ;;
        *) keys+=("$1" "$2") ;;
    esac
    shift 2
done
# Without an address there is one node, and a free port is found.
case " ${launch[*]-} " in *" --master_addr "*) ;; *) launch+=(--standalone) ;; esac
exec "${PYTHON:-python}" -m torch.distributed.run "${launch[@]}" -m train.run "${RECIPE:-unitok_large}" \
    ${keys[@]+"${keys[@]}"}

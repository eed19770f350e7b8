#!/usr/bin/env bash
# The emoji model from npm packages: pictures and records, image tokenizer, shards. An interrupted run resumes at the step
# it was in. Needs npm and `pip install -r scripts/emoji/requirements.txt`.
# usage: scripts/build_emoji_model.sh [RUNS_FOLDER [--KEY VALUE]...]   (keys are for the image tokenizer)
# On two cores without AVX-512: data 3 minutes, image tokenizer 0.6 s a step (20,000 steps: 3.5 hours). On a GPU:
# --batch_size 256 --num_workers 8
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/emoji}
jobs="draw name odd_one_out restyle tone gender talk unknown"

python -m scripts.emoji.build "$runs/data"
mllm train emoji_tokenizer --output "$runs/tokenizer" --shards.urls "$runs/data/tokenizer/{00000..00016}.tar" "${@:2}"
for job in $jobs; do
    mllm prepare "$runs/data/records/$job" --pictures "$runs/data/pictures" --out "$runs/shards/$job" \
        --image-tokenizer "$runs/tokenizer/final"
done

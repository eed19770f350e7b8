#!/usr/bin/env bash
# The emoji model from npm packages, as far as its shards: images and records, image tokenizer, larger decoder, codes.
# An interrupted run resumes at the step it was in. Needs npm and `pip install -r scripts/emoji/requirements.txt`.
# usage: scripts/build_emoji_model.sh [RUNS_FOLDER [--KEY VALUE]...]   (keys are for both stages of the image tokenizer)
# On two idle cores without AVX-512: data 3 minutes, codes 0.6 s a step (20,000 steps), decoder 1.2 s a step (8,000).
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/emoji}
tars="$runs/data/tokenizer/{00000..00016}.tar"

python -m scripts.emoji.build "$runs/data"
mllm train emoji_tokenizer --output "$runs/tokenizer" --shards.urls "$tars" "${@:2}"
mllm train emoji_decoder --output "$runs/decoder" --start_from "$runs/tokenizer/final" --shards.urls "$tars" "${@:2}"
for job in draw name odd_one_out restyle tone gender talk unknown; do
    mllm prepare "$runs/data/records/$job" --images "$runs/data/images" --out "$runs/shards/$job" \
        --image-tokenizer "$runs/decoder/final" --size 128x128
done

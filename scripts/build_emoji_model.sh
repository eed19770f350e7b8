#!/usr/bin/env bash
# The emoji model from npm packages to the bundle: images and records, tokenizers, codes, language model, scores.
# An interrupted run resumes at the step it was in. Needs npm and `pip install -r scripts/emoji/requirements.txt`.
# usage: scripts/build_emoji_model.sh [RUNS_FOLDER [MODEL_FOLDER [--KEY VALUE]...]]   (keys are for the language model)
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs/emoji}
bundled=${2:-mllm/assets/emoji}
data="$runs/data"
tars="$data/tokenizer/{00000..00007}.tar"

python -m scripts.emoji.build "$data" --styles flat gradient
[ -f "$runs/text/tokenizer.model" ] ||
    mllm train emoji_text --output "$runs/text/tokenizer.model" --records "[$data/records]"
mllm train emoji_tokenizer --output "$runs/tokenizer" --shards.urls "$tars"
# So few shards a job that all its records are shuffled together.
for job in draw draw_tones name odd_one_out restyle tone gender talk unknown; do
    mllm prepare "$data/records/$job" --images "$data/images" --out "$runs/shards/$job" \
        --image-tokenizer "$runs/tokenizer/final" --size 128x128 --shard-size 4096
done
# A larger decoder of the same codes: the language model can be trained without it, and draws with it.
mllm train emoji_decoder --output "$runs/decoder" --start_from "$runs/tokenizer/final" --shards.urls "$tars"
# The planner looks at what was drawn; it asks the questions of these records, so the recipe, for any images, has none.
mllm train emoji --output "$runs/model" --image_tokenizer "$runs/decoder/final" \
    --text_tokenizer "$runs/text/tokenizer.model" --data.root "$runs/shards" \
    --model.planner mllm.emoji.EmojiPlanner --model.styles "[flat, gradient]" --model.image_resamples 6 "${@:3}"

python -m train.bundle "$runs/model/final" "$bundled" --attribution "$data/ATTRIBUTION.md"
mllm evaluate emoji --model "$bundled" --data "$data" --json "$runs/scores.json" --sheet "$runs/sheet.png"
python -m train.bundle "$runs/model/final" "$bundled" --scores "$runs/scores.json"

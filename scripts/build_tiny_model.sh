#!/usr/bin/env bash
# Rebuild the bundled model from nothing: text tokenizer, image tokenizer, language model, scores.
# Every step goes on from its newest checkpoint, so the script can be stopped and started again.
# usage: scripts/build_tiny_model.sh [RUNS_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
bundled=mllm/assets/tiny

[ -f "$runs/tiny_text/tokenizer.model" ] || mllm train tiny_text --output "$runs/tiny_text/tokenizer.model"
mllm train tiny_tokenizer --output "$runs/tiny_tokenizer"
mllm train tiny --output "$runs/tiny" --image_tokenizer "$runs/tiny_tokenizer/final" \
    --text_tokenizer "$runs/tiny_text/tokenizer.model"
python -m train.bundle "$runs/tiny/final" "$bundled"
mllm evaluate world --model "$bundled" --count 500 --seed 0 --json "$runs/tiny/scores.json"
python -m train.bundle "$runs/tiny/final" "$bundled" --scores "$runs/tiny/scores.json"
